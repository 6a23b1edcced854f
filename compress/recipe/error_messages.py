"""Turn pydantic's errors about a recipe into one sentence each. Loads no torch; `loader.py` adds the positions."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from compress.recipe.schema import PATTERNS, Recipe, Section
from compress.recipe.yaml_parser import Keys, dotted, kind


@dataclass(frozen=True)
class Finding:
    """One mistake in a recipe.

    `at` is "key" or "value", whichever the position points at. `sections` are the top-level sections that it was judged
    from: if one of them is wrong itself, the mistake is not reported.
    """

    keys: Keys
    message: str
    at: str = "value"
    sections: frozenset[str] = frozenset()
    # If this key comes from --set, the mistake is only a remark: it is a quick trial of a long recipe.
    excuse: Keys = ()


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` if a known word is close, else nothing."""
    close = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def explain(error: ValidationError, data: Any) -> list[Finding]:
    """Describe pydantic's errors in one sentence each; a union's branches and a tuple's missing entries count once."""
    findings: dict[Keys, Finding] = {}
    for detail in error.errors(include_url=False):
        if detail["type"] == "too_short" and detail["input"]:
            continue  # pydantic counts only the good entries; the bad ones have errors of their own
        finding = _explain(detail, data)
        if finding.keys not in findings or detail["type"] == "missing":
            findings[finding.keys] = finding
    return list(findings.values())


def _explain(detail: ErrorDetails, data: Any) -> Finding:
    keys, got, what, limits = _real_keys(detail, data), kind(detail["input"]), detail["type"], detail.get("ctx", {})
    if what == "extra_forbidden":
        return Finding(keys, _unknown_key(keys), "key")
    if what == "missing" and isinstance(keys[-1], int):
        return Finding(keys[:-1], f"expected {keys[-1] + 1} entries, got {len(detail['input'])}")
    if what == "missing":
        return Finding(
            keys, "missing; every recipe needs it" if len(keys) == 1 else "missing; it has no default", "key"
        )
    if what == "literal_error":
        options = _options(keys)
        wanted = f"one of {', '.join(options)}" if len(options) > 1 else options[0]
        return Finding(keys, f"expected {wanted}, got {got}{did_you_mean(detail['input'], options)}")
    if what == "string_pattern_mismatch":
        return Finding(keys, f"expected {PATTERNS[limits['pattern']]}, got {got}")
    if what in _LIMITS:
        words, name = _LIMITS[what]
        return Finding(keys, f"{words} {limits[name]:.10g}, got {got}")
    if what == "too_short":
        return Finding(keys, "expected at least one entry, got none")
    if what == "too_long":
        return Finding(keys, f"expected {limits['max_length']} entries, got {limits['actual_length']}")
    if what == "value_error":
        return Finding(keys, str(limits["error"]))
    wanted = next((words for start, words in _TYPES.items() if what.startswith(start)), "")
    if wanted == "text" and got not in ("nothing", "a list", "a section"):
        got += "; put it in quotes"
    return Finding(keys, f"expected {wanted}, got {got}" if wanted else detail["msg"])


_LIMITS = {
    "greater_than_equal": ("must be at least", "ge"),
    "greater_than": ("must be above", "gt"),
    "less_than_equal": ("must be at most", "le"),
    "less_than": ("must be below", "lt"),
}
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list",
    "model": "a section (keys with values)",
}


def _real_keys(detail: ErrorDetails, data: Any) -> Keys:
    """Return `loc` without the names of union branches, which are no keys of the recipe."""
    keys: list[str | int] = []
    for number, part in enumerate(detail["loc"]):
        last = number == len(detail["loc"]) - 1
        inside = (
            isinstance(data, dict)
            and part in data
            or isinstance(data, list)
            and isinstance(part, int)
            and part < len(data)
        )
        if inside:
            keys.append(part)
            data = data[part]
        elif last and detail["type"] == "missing":
            keys.append(part)
    return tuple(keys)


def _options(keys: Keys) -> list[str]:
    """Return the words that a key, or an entry of its list, may have."""
    while isinstance(keys[-1], int):
        keys = keys[:-1]
    section = _section(keys[:-1])
    annotation = section.model_fields[_field(section, str(keys[-1]))].annotation if section else None
    parts = [annotation, *typing.get_args(annotation)]
    literal = next((part for part in parts if typing.get_origin(part) is typing.Literal), None)
    return [str(option) for option in typing.get_args(literal)]


def _field(section: type[Section], key: str) -> str:
    return next(name for name, info in section.model_fields.items() if key == (info.alias or name))


def _names(section: type[Section]) -> list[str]:
    return [info.alias or name for name, info in section.model_fields.items()]


def _section(keys: Keys) -> type[Section] | None:
    """Return the section at `keys`."""
    section: type[Section] | None = Recipe
    for key in keys:
        if section is None or isinstance(key, int):
            continue  # an entry of a list: its section is known from the list
        section = _inner(section.model_fields[_field(section, key)].annotation) if key in _names(section) else None
    return section


def _inner(annotation: Any) -> type[Section] | None:
    """Return the section class within `Section | None` or `tuple[Section, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in typing.get_args(annotation) if (found := _inner(part))), None)


def _unknown_key(keys: Keys) -> str:
    key, section = str(keys[-1]), _section(keys[:-1])
    names = _names(section) if section else []
    if ":" in key:
        return f"unknown key; put a space behind the colon: {key.replace(':', ': ', 1)}"
    if hint := did_you_mean(key, names):
        return f"unknown key{hint}"
    nearby = [(*keys[:-1], name) for name in names] + [(name,) for name in _names(Recipe)]
    homes = [dotted((*home, key)) for home in nearby if (inner := _section(home)) and key in _names(inner)]
    return f"unknown key here (did you mean '{homes[0]}'?)" if homes else f"unknown key; known are {', '.join(names)}"
