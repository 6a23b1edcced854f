"""Overrides from the command line: `--set key=value`. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compress.core.errors import Problem
from compress.recipe import yaml_parser
from compress.recipe.yaml_parser import Keys, Place, dotted
from compress.recipe.yaml_tree import Tree


@dataclass(frozen=True)
class Override:
    """One `--set key=value`. `places` are relative to `keys`."""

    flag: str
    keys: Keys
    data: Any
    places: dict[Keys, Place]


def parse_override(text: str, number: int, problems: list[Problem]) -> Override | None:
    """Parse the `number`-th --set (counted from 1); return None and add to `problems` where it cannot be read."""
    flag = f"--set {text}"
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        problems.append(Problem(flag, "", "expected key=value, such as train.epochs=2"))
        return None
    before = len(problems)
    data, places = yaml_parser.parse(value, flag, number, key, problems)
    keys = yaml_parser.split(key)
    if not places:  # an empty value is null
        places = {(): Place(flag, flag, number, key)}
    return Override(flag, keys, data, places) if len(problems) == before else None


def apply_override(tree: Tree, override: Override, keys: Keys, problems: list[Problem]) -> None:
    """Put the override's value at `keys` of the recipe; add to `problems` where there is no such place."""
    try:
        tree.put(keys, override.data, override.places)
    except KeyError as error:
        problems.append(Problem(override.flag, dotted(override.keys), error.args[0]))
