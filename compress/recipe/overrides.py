"""Overrides from the command line: `--set key=value`. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compress.core.errors import Problem
from compress.models import catalog
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
    # In a shell, ` #` begins no comment: it may be part of a path.
    if " #" in value and not value.lstrip().startswith(("'", '"', "[", "{", "|", ">")):
        value = "'" + value.strip().replace("'", "''") + "'"
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


def anchor(override: Override, recipe: Path, problems: list[Problem]) -> Override:
    """Make the paths of an override absolute: they count from where the command is typed, not from the recipe.

    A path that exists only beside the recipe is added to `problems`.

    Args:
        override: As `parse_override` returned it.
        recipe: The recipe's file.
        problems: Receives what is wrong.
    """
    folder = recipe.resolve().parent

    def anchored(keys: Keys, data: Any) -> Any:
        if isinstance(data, dict):
            return {name: anchored((*keys, name), value) for name, value in data.items()}
        if isinstance(data, list):
            return [anchored((*keys, number), value) for number, value in enumerate(data)]
        if not _is_relative_path(keys, data):
            return data
        here, beside = Path.cwd() / data, folder / data
        if keys[-1] == "labels":  # these count from data.root
            return str(here) if here.is_file() else data
        if beside.exists() and not here.exists():
            problems.append(
                Problem(
                    override.flag,
                    dotted(keys),
                    f"{here} does not exist, and paths given by --set count from the working folder; beside the recipe "
                    f"there is {beside}: give that path",
                )
            )
        return str(here)

    return replace(override, data=anchored(override.keys, override.data))


def _is_relative_path(keys: Keys, value: Any) -> bool:
    if not isinstance(value, str) or not value or value.startswith("~") or Path(value).is_absolute():
        return False
    if keys[-1] == "weights":
        return Path(value).suffix in catalog.CHECKPOINT_SUFFIXES and "://" not in value
    if keys[0] == "data":
        return keys[1:] in (("root",), ("labels",), ("unlabelled",))
    return keys[0] == "teacher" and keys[-1] == "onnx"
