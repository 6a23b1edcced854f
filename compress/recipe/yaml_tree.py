"""A recipe as plain values, each with its position in the file or in a --set flag. Loads no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from compress.core.errors import Problem, RecipeError, UsageError
from compress.recipe.yaml_parser import Keys, Place, dotted, kind, parse


@dataclass
class Tree:
    """Plain values and their positions; overrides change it."""

    path: Path
    data: Any
    places: dict[Keys, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place(self, keys: Keys) -> Place:
        """Return the position of `keys`, or of the nearest section around it that the file has."""
        for end in range(len(keys), -1, -1):
            if keys[:end] in self.places:
                return self.places[keys[:end]]
        return Place(str(self.path), str(self.path), 0, "")

    def put(self, keys: Keys, data: Any, places: dict[Keys, Place]) -> None:
        """Replace the value at `keys` and make missing sections on the way.

        Args:
            keys: where the value goes.
            data: the plain value.
            places: its positions, relative to `keys`.

        Raises:
            KeyError: there can be no such place; it holds a sentence.
        """
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
        """Return `keys` as they apply to this tree: a number is a position only in a list, else a name."""
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
        """Drop the positions at and below `keys`."""
        for known in [known for known in self.places if known[: len(keys)] == keys]:
            del self.places[known]

    def take(self, keys: Keys) -> tuple[Any, dict[Keys, Place]]:
        """Remove the entry `keys` of a section; return its value and the positions relative to it."""
        holder = self._holder(keys)
        places = {known[len(keys) :]: place for known, place in self.places.items() if known[: len(keys)] == keys}
        self.forget(keys)
        return holder.pop(keys[-1]), places

    def _holder(self, keys: Keys) -> Any:
        """Return the section or list that holds `keys`; a missing or empty section is made."""
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


def read(path: Path) -> Tree:
    """Read a file. Raises UsageError (no such file) and RecipeError (not YAML, or no mapping)."""
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
