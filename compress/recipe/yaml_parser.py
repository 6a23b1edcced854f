"""Parses YAML text to plain values and their positions. Loads no torch.

The traps of YAML 1.1 are closed: `5e-4` and `1_000_000` are numbers, `010` is ten, `on`, `yes` and `1:30` are text, and
only true and false are booleans. A repeated key, a tag, an alias or a second document is a mistake with its position.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from compress.core.errors import Problem

# Path to a value: names in sections, 0-based positions in lists.
Keys = tuple[str | int, ...]

_INTEGER = re.compile(r"[-+]?[0-9][0-9_]*")
FLOAT = re.compile(r"[-+]?(\.[0-9][0-9_]*|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?")
_CONSTANTS: dict[str, bool | None] = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_CONSTANTS |= dict.fromkeys(("true", "True", "TRUE"), True) | dict.fromkeys(("false", "False", "FALSE"), False)

# What PyYAML says -> what the user can act on.
_SYNTAX = (
    (r"'\\t'", "a tab; YAML takes only spaces here"),
    (r"could not find expected ':'", "expected `key: value`, with a space behind the colon"),
    (r"mapping values are not allowed", "unexpected ':' (check the indentation, or put the text in quotes)"),
    (r"expected <block end>", "the indentation does not fit the lines above"),
    (r"expected '(,|\])' or '(\]|,)'|expected ',' or '\}'", "a bracket that is not closed, or a comma is missing"),
    (
        r"expected the node content|cannot start any token",
        "this character cannot begin a value; put the text in quotes",
    ),
    (r"end of stream", "the text ends inside quotes that are not closed"),
)


@dataclass(frozen=True)
class Place:
    """The positions of a key and its value.

    `flag` is 0 for the file and n for the n-th --set. `shown` is the key as the user wrote it.
    """

    key: str
    value: str
    flag: int
    shown: str


def dotted(keys: Keys) -> str:
    """Join a path: `('teacher', 'candidates', 0)` -> `teacher.candidates.0`."""
    return ".".join(str(key) for key in keys)


def split(key: str) -> Keys:
    """Split a dotted key: the inverse of `dotted`."""
    return tuple(int(part) if part.isdecimal() else part for part in key.split("."))


def parse(text: str, source: str, flag: int, shown: str, problems: list[Problem]) -> tuple[Any, dict[Keys, Place]]:
    """Parse a YAML text to plain values and their positions.

    Args:
        text: the YAML.
        source: the file's path, or the --set flag that the text comes from.
        flag: 0 for a file, n for the n-th --set, whose position is `source` alone.
        shown: the key that the user gave before the text; "" for a file.
        problems: receives the mistakes.
    """

    def where(mark: Any) -> str:
        return source if flag or mark is None else f"{source}:{mark.line + 1}:{mark.column + 1}"

    try:
        node = PositionLoader(text).get_single_node()
    except _Unsupported as error:
        problems.append(Problem(where(error.problem_mark), shown, str(error.problem)))
        return None, {}
    except yaml.MarkedYAMLError as error:
        problems.append(Problem(where(error.problem_mark or error.context_mark), shown, _syntax(error)))
        return None, {}
    except yaml.reader.ReaderError as error:
        problems.append(
            Problem(
                source,
                shown,
                f"a character that YAML does not allow (code {error.character}, position {error.position})",
            )
        )
        return None, {}
    except RecursionError:
        problems.append(Problem(source, shown, "nested too deeply"))
        return None, {}
    places: dict[Keys, Place] = {}

    def plain(node: Node, keys: Keys, key_where: str) -> Any:
        name = ".".join(filter(None, (shown, dotted(keys))))
        places[keys] = Place(key_where, where(node.start_mark), flag, name)
        if isinstance(node, SequenceNode):
            return [plain(item, (*keys, number), where(item.start_mark)) for number, item in enumerate(node.value)]
        if isinstance(node, MappingNode):
            return mapping(node, keys, name)
        return _scalar(str(node.value), quoted=isinstance(node, ScalarNode) and node.style is not None)

    def mapping(node: MappingNode, keys: Keys, name: str) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in node.value:
            here = where(key.start_mark)
            if not isinstance(key, ScalarNode):
                problems.append(Problem(here, name, "a key is a plain word, not a list or a section"))
            elif key.value in values:
                twice = ".".join(filter(None, (name, key.value)))
                problems.append(Problem(here, twice, f"given twice, first at {places[(*keys, key.value)].key}"))
            else:
                values[key.value] = plain(value, (*keys, key.value), here)
        return values

    return (None, {}) if node is None else (plain(node, (), where(node.start_mark)), places)


def kind(value: Any) -> str:
    """Describe a value, for messages."""
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list):
        return "a list"
    return (
        {None: "nothing", True: "true", False: "false"}[value]
        if value is None or isinstance(value, bool)
        else str(value)
    )


class _Unsupported(yaml.MarkedYAMLError):
    """YAML that a recipe does not use."""


class PositionLoader(yaml.SafeLoader):
    """Composes nodes with marks, and refuses aliases and tags."""

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        loader: Any = self  # PyYAML's own methods have no types
        event: Any = loader.peek_event()
        mark: Any = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            raise _Unsupported(
                None, None, "an alias (*name) is not supported; write the value out, or put the text in quotes", mark
            )
        if getattr(event, "tag", None) not in (None, "!"):
            raise _Unsupported(None, None, "a tag (!name) is not supported; put the text in quotes", mark)
        return super().compose_node(parent, index)


def _scalar(text: str, *, quoted: bool) -> Any:
    """Return the value of a scalar. Quoted is text; a whole number may be written with an exponent (2e6)."""
    if quoted:
        return text
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    digits = text.replace("_", "")
    if _INTEGER.fullmatch(text) and len(digits) <= 400:
        return int(digits)
    if FLOAT.fullmatch(text):
        value = float(digits)
        return int(value) if value.is_integer() and abs(value) < 1e15 and "." not in text else value
    return text


def _syntax(error: yaml.MarkedYAMLError) -> str:
    said = f"{error.problem or ''} / {error.context or ''}"
    if "single document" in said:
        return "a file holds one recipe; a second document begins here"
    for pattern, message in _SYNTAX:
        if re.search(pattern, said):
            return message
    return f"not valid YAML: {error.problem or error.context}"
