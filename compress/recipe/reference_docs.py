"""The recipe reference in docs/reference/recipe.md, generated from the schema. Loads no torch.

`python -m compress.recipe.reference_docs docs/reference/recipe.md` rewrites the text between the page's two markers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compress.recipe.schema import PATTERNS, Recipe

BEGIN, END = "<!-- RECIPE REFERENCE BEGIN -->", "<!-- RECIPE REFERENCE END -->"
LIST = "[]"  # marks an entry of a list in a section's path


def markdown() -> str:
    """Return a table for every section: key, default, what is allowed, meaning."""
    schema = Recipe.model_json_schema(by_alias=True)
    homes = _homes(schema)
    parts = [_table("The recipe itself", "", schema, schema, homes)]
    for path, name in _walk(schema, schema, homes, ""):
        section = schema["$defs"][name]
        parts.append(_table(f"`{path}`", section.get("description", ""), section, schema, homes))
    return "\n\n".join(parts)


def between(text: str) -> str:
    """Return the text between a document's two markers. Raises ValueError where one is missing."""
    begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    return text[begin:end].strip("\n")


def replaced(text: str) -> str:
    """Return the document with a fresh reference between its markers. Raises ValueError where one is missing."""
    begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    return f"{text[:begin]}\n{markdown()}\n{text[end:]}"


def _sections(section: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (key, section's name) of the keys that hold a section, or a list of sections."""
    for key, value in section["properties"].items():
        for option in value.get("anyOf", [value]):
            if "$ref" in option:
                yield key, option["$ref"].rsplit("/", 1)[1]
            elif "$ref" in option.get("items", {}):
                yield key + LIST, option["items"]["$ref"].rsplit("/", 1)[1]


def _homes(schema: dict[str, Any]) -> dict[str, str]:
    """Return where each section is described: at the shortest of its paths, such as `train`."""
    homes: dict[str, str] = {}
    level = [("", schema)]
    while level:
        below = []
        for path, section in level:
            for key, name in _sections(section):
                if name not in homes:
                    homes[name] = f"{path}.{key}".lstrip(".")
                    below.append((homes[name], schema["$defs"][name]))
        level = below
    return homes


def _walk(
    section: dict[str, Any], schema: dict[str, Any], homes: dict[str, str], path: str
) -> Iterator[tuple[str, str]]:
    """Yield (path, section's name) in the order of a recipe, each section once."""
    for key, name in _sections(section):
        place = f"{path}.{key}".lstrip(".")
        if homes[name] == place:
            yield place, name
            yield from _walk(schema["$defs"][name], schema, homes, place)


def _table(title: str, intro: str, section: dict[str, Any], schema: dict[str, Any], homes: dict[str, str]) -> str:
    required = section.get("required", [])
    rows = [_row(key, value, key in required, homes) for key, value in section["properties"].items()]
    head = [
        f"## {title}",
        "",
        *([intro, ""] if intro else []),
        "| key | default | allowed | meaning |",
        "|---|---|---|---|",
    ]
    return "\n".join(head + rows)


def _row(key: str, value: dict[str, Any], required: bool, homes: dict[str, str]) -> str:
    default = "required" if required else _default(value.get("default"))
    cells = (f"`{key}`", default, _allowed(value, homes), _literal(value["description"]))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _literal(text: str) -> str:
    """Return text whose `<`, `>` and `*` are no Markdown, except where it is code already."""
    pieces = text.split("`")
    for place in range(0, len(pieces), 2):
        pieces[place] = pieces[place].replace("<", "&lt;").replace(">", "&gt;").replace("*", "\\*")
    return "`".join(pieces)


def _default(value: Any) -> str:
    """Format a default as a recipe would have it; a section has its own table."""
    if isinstance(value, dict):
        return "see its keys"
    plain = isinstance(value, str) and value != "" and not value[0].isdigit()  # "1.19" without quotes would be a number
    return f"`{value if plain else json.dumps(value)}`"


def _allowed(value: dict[str, Any], homes: dict[str, str]) -> str:
    """Describe type and range."""
    if "anyOf" in value:
        return " or ".join(_allowed(option, homes) for option in value["anyOf"])
    if "$ref" in value:
        return f"section, see `{homes[value['$ref'].rsplit('/', 1)[1]]}`"
    if "enum" in value or "const" in value:
        return ", ".join(f"`{option}`" for option in value.get("enum", [value.get("const")]))
    kind = value["type"]
    if kind == "array":
        items = value["prefixItems"] if "prefixItems" in value else [value["items"]]
        if "$ref" in items[0]:
            return "list of sections, see `" + homes[items[0]["$ref"].rsplit("/", 1)[1]] + "`"
        count = f"{len(items)} values" if "prefixItems" in value else "values"
        return f"list of {count}, each a {_allowed(items[0], homes)}"
    if kind in ("integer", "number"):
        return ("whole number" if kind == "integer" else "number") + _range(value)
    if kind == "string":
        return PATTERNS[value["pattern"]] if "pattern" in value else "text"
    if kind == "object":
        return f"{_allowed(value['additionalProperties'], homes)} by name"
    return {"boolean": "`true`, `false`", "null": "`null`"}[kind]


def _range(value: dict[str, Any]) -> str:
    """Describe a range: ` from 0 to 1`, ` above 0, below 1`."""
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    parts = [f"{word} {value[limit]:.10g}" for limit, word in words.items() if limit in value]
    closed = "minimum" in value and "maximum" in value
    return f" {' to '.join(parts).replace('at most ', '')}" if closed else f" {', '.join(parts)}" if parts else ""


if __name__ == "__main__":
    document = Path(sys.argv[1])
    document.write_text(replaced(document.read_text(encoding="utf-8")), encoding="utf-8")
