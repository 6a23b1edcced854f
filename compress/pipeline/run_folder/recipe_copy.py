"""The recipe in a run folder. Its relative paths are made absolute, so that it runs from there on the same data."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compress.models import catalog
from compress.recipe import yaml_parser, yaml_writer
from compress.recipe.loader import Loaded
from compress.recipe.schema import Recipe
from compress.recipe.yaml_parser import Keys

RECIPE, RESOLVED = "recipe.yaml", "resolved.yaml"


def write(loaded: Loaded, settings: Recipe, folder: Path) -> None:
    """Write `recipe.yaml`, the recipe as it was, and `resolved.yaml`, with --set and every default filled in."""
    base, plain = loaded.path.resolve().parent, settings.plain()
    for keys, path in written_out(plain, base).items():
        holder: Any = plain
        for key in keys[:-1]:
            holder = holder[key]
        holder[keys[-1]] = path
    (folder / RESOLVED).write_text(yaml_writer.write(plain), encoding="utf-8")
    text = loaded.path.read_bytes().decode("utf-8-sig")
    values, _ = yaml_parser.parse(text, str(loaded.path), 0, "", [])
    changes = written_out(values, base)
    if not values.get("name"):
        changes[("name",)] = loaded.name  # else the copy would be called after its own file
    (folder / RECIPE).write_bytes(yaml_writer.changed(text, changes).encode())


def again(folder: Path, recipe: str = RESOLVED) -> str:
    """Return the command that repeats the run in `folder`, with the options that its report names."""
    try:
        command = str(json.loads((folder / "report.json").read_text(encoding="utf-8"))["command"] or "")
        options = options_of(command, ("--allow-code", "--artifacts", "--device"))
    except (OSError, ValueError, LookupError, TypeError):
        options = []
    return shlex.join(["compress", "run", str(folder / recipe), *options])


def options_of(command: str, names: tuple[str, ...]) -> list[str]:
    """Return those of the options `names` that a run's command has, with their values."""
    words, found = iter(shlex.split(command)[3:]), list[str]()
    for word in words:
        option = [word] if word == "--allow-code" else [word, next(words, "")]
        found += option if word in names else []
    return found


def written_out(data: Any, base: Path) -> dict[Keys, str]:
    """Return a recipe's relative paths, from the root or from the home folder. `base`: where they begin."""
    return {keys: _from_root(base / path) for keys, path in _paths(data) if not Path(path).expanduser().is_absolute()}


def _from_root(path: Path) -> str:
    full, home = path.resolve(), Path.home().resolve()
    return f"~/{full.relative_to(home).as_posix()}" if full.is_relative_to(home) else str(full)


def _paths(data: Any) -> Iterator[tuple[Keys, str]]:
    """Yield the values that name a file or a folder."""
    for name in ("root", "unlabelled"):
        if _entry(data, "data", name):
            yield ("data", name), data["data"][name]
    student: Keys = ("student",)
    networks: list[tuple[Keys, Any]] = [(student, data.get("student"))]
    for home in (("teacher", "candidates"), ("student", "choose", "from")):
        listed = _entry(data, *home)
        networks += [((*home, number), one) for number, one in enumerate(listed if isinstance(listed, list) else [])]
    for keys, one in networks:
        for key in ("weights", "onnx"):
            value = _entry(one, key)
            if isinstance(value, str) and (key == "onnx" or catalog.is_checkpoint(value)) and "://" not in value:
                yield (*keys, key), value


def _entry(data: Any, *keys: str) -> Any:
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data
