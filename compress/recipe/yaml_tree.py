"""YAML text to plain values, every one with its place in the file. Torch-free.

YAML 1.1's traps are closed: `5e-4` and `1_000_000` are numbers, `010` is ten, `on`, `yes` and `1:30` are text, only true and false are
booleans; a repeated key, a tag, an alias or a second document is a mistake with a line and a column.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from compress.core.errors import Problem, RecipeError, UsageError

Keys = tuple[str | int, ...]  # path to a value: names in sections, 0-based positions in lists

_INTEGER = re.compile(r"[-+]?[0-9][0-9_]*")
_FLOAT = re.compile(r"[-+]?(\.[0-9][0-9_]*|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?")
_CONSTANTS: dict[str, bool | None] = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_CONSTANTS |= dict.fromkeys(("true", "True", "TRUE"), True) | dict.fromkeys(("false", "False", "FALSE"), False)

# what PyYAML says -> what a person can act on
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
    """Where a value's key and the value stand. `flag`: 0 for the file, n for the n-th --set. `shown`: the key as the user wrote it."""

    key: str
    value: str
    flag: int
    shown: str


@dataclass
class Tree:
    """Plain values and their places; grows by overrides."""

    path: Path
    data: Any
    places: dict[Keys, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place(self, keys: Keys) -> Place:
        """Where `keys` stands, or the nearest section around it that the file has."""
        for end in range(len(keys), -1, -1):
            if keys[:end] in self.places:
                return self.places[keys[:end]]
        return Place(str(self.path), str(self.path), 0, "")

    def put(self, keys: Keys, data: Any, places: dict[Keys, Place]) -> None:
        """Replace the value at `keys` (sections on the way are made); `places` are relative to it. Raises KeyError(sentence)."""
        self.forget(keys)
        if not keys:
            self.data = data
        else:
            holder = self._holder(keys)
            holder[keys[-1]] = data
        for end in range(1, len(keys)):  # sections that were made on the way
            self.places.setdefault(keys[:end], replace(places[()], shown=dotted(keys[:end])))
        self.places |= {(*keys, *below): place for below, place in places.items()}

    def real(self, keys: Keys) -> Keys:
        """`keys` as they apply here: a number is a position in a list only, else a name."""
        holder, found = self.data, list[str | int]()
        for part in keys:
            key = part if isinstance(holder, list) else str(part)
            found.append(key)
            inside = (
                isinstance(holder, list)
                and isinstance(key, int)
                and key < len(holder)
                or isinstance(holder, dict)
                and key in holder
            )
            holder = holder[key] if inside else None
        return tuple(found)

    def forget(self, keys: Keys) -> None:
        """Drop the places at and below `keys`."""
        for known in [known for known in self.places if known[: len(keys)] == keys]:
            del self.places[known]

    def take(self, keys: Keys) -> tuple[Any, dict[Keys, Place]]:
        """Remove the entry `keys` of a section; its value and the places relative to it."""
        holder = self._holder(keys)
        places = {known[len(keys) :]: place for known, place in self.places.items() if known[: len(keys)] == keys}
        self.forget(keys)
        return holder.pop(keys[-1]), places

    def _holder(self, keys: Keys) -> Any:
        """The section or list that holds `keys`; a missing or empty section is made."""
        holder = self.data
        for depth, key in enumerate(keys):
            _require_entry(holder, keys[:depth], key)
            if depth == len(keys) - 1:
                break
            if isinstance(holder, dict) and holder.get(key) is None:
                holder[key] = {}
            holder = holder[key]
        return holder


def _require_entry(holder: Any, above: Keys, key: str | int) -> None:
    if isinstance(holder, list) and not (isinstance(key, int) and key < len(holder)):
        raise KeyError(f"{dotted(above)} is a list of {len(holder)}, counted from 0; {key} is not in it")
    if not isinstance(holder, (dict, list)):
        raise KeyError(f"{dotted(above)} is a single value, not a section")


def dotted(keys: Keys) -> str:
    """`('teacher', 'candidates', 0)` -> `teacher.candidates.0`."""
    return ".".join(str(key) for key in keys)


def split(key: str) -> Keys:
    """The inverse of `dotted`."""
    return tuple(int(part) if part.isdecimal() else part for part in key.split("."))


def read(path: Path) -> Tree:
    """The tree of a file. Raises UsageError (no such file), RecipeError (not YAML, or no mapping)."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError([Problem(str(path), "", f"not UTF-8 text (byte {error.start + 1})")]) from error
    except OSError as error:
        raise UsageError(f"{path}: {'this is a folder, not a recipe' if path.is_dir() else error.strerror}") from error
    tree = Tree(path, None)
    conflict = re.search(r"^<{7}( |$)", text, re.MULTILINE)
    if conflict:
        line = text.count("\n", 0, conflict.start()) + 1
        message = "a merge conflict is not resolved here; remove its <<<<<<<, ======= and >>>>>>> lines"
        raise RecipeError([Problem(f"{path}:{line}:1", "", message)])
    tree.data, tree.places = parse(text, str(path), 0, "", tree.problems)
    if tree.problems and tree.data is None:
        raise RecipeError(tree.problems)
    if tree.data is None:
        raise RecipeError(
            [Problem(f"{path}:1:1", "", "the recipe is empty; it needs at least data, teacher and student")]
        )
    if not isinstance(tree.data, dict):
        message = f"a recipe is made of sections (`data:`, `teacher:`, ...), not {kind(tree.data)}"
        raise RecipeError([Problem(tree.place(()).value, "", message)])
    return tree


def parse(text: str, source: str, flag: int, shown: str, problems: list[Problem]) -> tuple[Any, dict[Keys, Place]]:
    """Plain values and places of a YAML text; mistakes are added to `problems`. With `flag` the source alone is the place."""

    def where(mark: Any) -> str:
        return source if flag or mark is None else f"{source}:{mark.line + 1}:{mark.column + 1}"

    try:
        node = _Loader(text).get_single_node()
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
    """A value in words, for messages."""
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


class _Loader(yaml.SafeLoader):
    """Nodes with marks; aliases and tags are refused."""

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event: Any = self.peek_event()
        mark: Any = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            raise _Unsupported(
                None, None, "an alias (*name) is not supported; write the value out, or put the text in quotes", mark
            )
        if getattr(event, "tag", None) not in (None, "!"):
            raise _Unsupported(None, None, "a tag (!name) is not supported; put the text in quotes", mark)
        return super().compose_node(parent, index)


def _scalar(text: str, *, quoted: bool) -> Any:
    """The value of a scalar: quoted is text; a whole number may be written with an exponent (2e6)."""
    if quoted:
        return text
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    digits = text.replace("_", "")
    if _INTEGER.fullmatch(text) and len(digits) <= 400:
        return int(digits)
    if _FLOAT.fullmatch(text):
        value = float(digits)
        return int(value) if value.is_integer() and abs(value) < 1e15 and "." not in text else value
    return text


def _syntax(error: yaml.MarkedYAMLError) -> str:
    said = f"{error.problem or ''} / {error.context or ''}"
    if "single document" in said:
        return "one recipe a file; a second document begins here"
    for pattern, message in _SYNTAX:
        if re.search(pattern, said):
            return message
    return f"not valid YAML: {error.problem or error.context}"


def changed(text: str, values: Mapping[Keys, str]) -> str:
    """The YAML of a mapping with other texts at some of its keys, and all else, comments too, as it was; a key that is missing at the top is put first."""
    root: Any = _Loader(text).get_single_node()
    spans: list[tuple[int, int, str]] = []
    for keys, value in values.items():
        node = _below(root, keys)
        word = yaml.dump(value, Dumper=_Dumper, default_style='"', allow_unicode=True, width=math.inf).rstrip()
        if node is None:
            start = root.start_mark.index + bool(root.flow_style)
            behind = ", " if root.flow_style else "\n" + " " * root.start_mark.column
            spans.append((start, start, f"{keys[0]}: {word}{behind}"))
        else:
            start, end = node.start_mark.index, node.end_mark.index
            spans.append(
                (start, end, f" {word}" if start == end else f"{word}\n" if node.style in ("|", ">") else word)
            )
    for start, end, word in sorted(spans, reverse=True):
        text = text[:start] + word + text[end:]
    return text


def _below(node: Any, keys: Keys) -> Any:
    """The node at `keys`; None where there is none."""
    for key in keys:
        inside = node.value if isinstance(node, SequenceNode) else {name.value: value for name, value in node.value}
        node = inside[key] if isinstance(key, int) else inside.get(key)
    return node


class _Dumper(yaml.SafeDumper):
    """Block style, no anchors; quotes whatever this reader or YAML 1.1 would not read as text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^(?:{_FLOAT.pattern})$"), list("-+.0123456789"))


def write(data: Any) -> str:
    """YAML of plain values; `read` gives the same values back."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=120)
