"""Loads a recipe file and checks it: every mistake at once, each with its line and column. Loads no torch."""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from compress.core.errors import Problem, RecipeError
from compress.core.records.warnings import RunWarning
from compress.recipe import cross_checks, yaml_parser, yaml_tree, yaml_writer
from compress.recipe.error_messages import explain
from compress.recipe.flat_keys import is_flat, not_in_method, section_key, selected_method, sort_flat_keys
from compress.recipe.network_checks import wrong_networks
from compress.recipe.overrides import Override, anchor, apply_override, parse_override
from compress.recipe.schema import Recipe, Section
from compress.recipe.yaml_parser import Keys, dotted
from compress.recipe.yaml_tree import Tree


@dataclass(frozen=True)
class Loaded:
    """A checked recipe and where its values stand. `name` is the recipe's name or the file's."""

    recipe: Recipe
    path: Path
    name: str
    warnings: tuple[RunWarning, ...]
    tree: Tree = field(repr=False, compare=False)
    # What stands behind the path on the command line: --set KEY=VALUE, --allow-code, --artifacts FOLDER, --device NAME.
    flags: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """Return the command that runs the recipe again from the same working folder."""
        return shlex.join(["compress", "run", str(self.path), *self.flags])

    def run_with(self, artifacts: Path, device: str) -> Loaded:
        """Return the same recipe whose command has these options, where they differ from their defaults."""
        options = (("--artifacts", str(artifacts), "artifacts"), ("--device", device, "auto"))
        return replace(
            self,
            flags=(*self.flags, *(word for name, value, usual in options if value != usual for word in (name, value))),
        )

    def where(self, key: str) -> str:
        """Return `path:line:column` of a dotted key, or its --set flag.

        If the recipe leaves the key out, the place is that of the nearest section around it.
        """
        keys = yaml_parser.split(key)
        own = ("distill", self.recipe.distill.method[0], *keys[1:])
        return self.tree.place(own if keys[0] == "distill" and own in self.tree.places else keys).key

    def file(self, text: str) -> Path:
        """Return a path that the recipe names: relative to the recipe, `~` expanded."""
        return self.path.parent / Path(text).expanduser()


def load(path: Path, overrides: Sequence[str] = (), *, allow_code: bool = False) -> Loaded:
    """Read, override and check a recipe.

    Args:
        path: the YAML file.
        overrides: `key=value`, as given by --set.
        allow_code: whether networks may be the user's own Python code.

    Raises:
        UsageError: there is no such file.
        RecipeError: the recipe is wrong; it holds all mistakes.
    """
    tree = yaml_tree.read(path)
    problems = tree.problems
    given = [item for number, text in enumerate(overrides, 1) if (item := parse_override(text, number, problems))]
    parsed = [anchor(item, path, problems) for item in given]
    remarks = _sort_and_override(tree, parsed, problems)
    _fill_empty(tree.data, Recipe)
    recipe = _validate(tree, problems, remarks, allow_code=allow_code)
    if problems or recipe is None:
        raise RecipeError(sorted(problems, key=_position))
    name = recipe.name or re.sub(r"^[^A-Za-z0-9]+|[^A-Za-z0-9._-]", "-", path.stem).strip("-") or "recipe"
    remarks += [f"{tree.place(keys).key}: {sentence}" for keys, sentence in cross_checks.remarks(recipe)]
    warnings = tuple(RunWarning(text) for text in remarks)
    flags = (*(word for text in overrides for word in ("--set", text)), *(("--allow-code",) if allow_code else ()))
    return Loaded(recipe.model_copy(update={"name": name}), path, name, warnings, tree, flags)


def _sort_and_override(tree: Tree, overrides: list[Override], problems: list[Problem]) -> list[str]:
    """Sort distill's flat keys into their method's section and apply the overrides in order; return remarks."""
    moved, named = sort_flat_keys(tree, problems), selected_method(tree)
    flat = [item for item in overrides if is_flat(item.keys, item.data)]
    for item in overrides:
        if item in flat:
            continue
        keys = tree.real(item.keys)
        apply_override(tree, item, keys, problems)
        if keys == ("distill",):
            moved, named = sort_flat_keys(tree, problems), selected_method(tree)
    method = selected_method(tree)
    for item in flat:  # they belong to the method that is selected in the end
        key = str(item.keys[1])
        target = section_key(key, method)
        if target is None:
            problems += not_in_method(key, method, item.flag)
        else:
            apply_override(tree, item, target, problems)
    methods = method if isinstance(method, list) else [method]
    if moved and named not in methods and all(isinstance(one, str) for one in methods):
        return [f"distill.method is {' and '.join(methods)}: {', '.join(moved)} belong to {named} and are not used"]
    return []


def dump(recipe: Recipe) -> str:
    """Write a recipe as YAML; `load` gives the same recipe back."""
    return yaml_writer.write(recipe.plain())


def _fill_empty(data: Any, section: type[Section]) -> None:
    """Give a section its defaults if it is there but empty, such as `require:` with everything commented out."""
    for name, info in section.model_fields.items():
        key = info.alias or name
        if (
            isinstance(info.annotation, type)
            and issubclass(info.annotation, Section)
            and isinstance(data, dict)
            and key in data
        ):
            data[key] = {} if data[key] is None else data[key]
            _fill_empty(data[key], info.annotation)


def _validate(tree: Tree, problems: list[Problem], remarks: list[str], *, allow_code: bool) -> Recipe | None:
    """Check the schema, then what holds between keys; return None where the schema alone is broken."""
    wrong: list[Keys] = []
    if "validate_" in tree.data:  # the field's Python name is no key
        place = tree.place(("validate_",))
        problems.append(Problem(place.key, "validate_", "unknown key (did you mean 'validate'?)"))
        tree.take(("validate_",))
    recipe = None
    try:
        recipe = _build(tree.data)
    except ValidationError as error:
        found = explain(error, tree.data)
        problems += [_problem(tree, item.keys, item.message, item.at) for item in found]
        wrong = [item.keys for item in found]
        recipe = _without(tree.data, wrong)
    for keys, message in wrong_networks(tree.data, allow_code=allow_code):
        problems.append(_problem(tree, keys, message))
        wrong.append(keys)
    if recipe is not None:
        broken = {keys[0] for keys in wrong if keys}
        for item in cross_checks.contradictions(recipe):
            problem = _problem(tree, item.keys, item.message, item.at)
            if item.excuse in tree.places and tree.places[item.excuse].flag > tree.place(item.keys).flag:
                remarks.append(str(problem))
            elif not broken & item.sections:
                problems.append(problem)
    return recipe


def _build(data: Any) -> Recipe:
    """Validate plain values through JSON, where strict mode refuses text for numbers but takes lists for tuples."""
    return Recipe.model_validate_json(json.dumps(data), strict=True)


def _without(data: Any, wrong: list[Keys]) -> Recipe | None:
    """Return the recipe with wrong values at their defaults, so that the other checks can run.

    None where a wrong value has no default.
    """
    data = copy.deepcopy(data)
    for keys in wrong:
        holder: Any = data
        for key in keys[:-1]:  # a section that an earlier mistake removed has no entries
            holder = holder[int(key)] if isinstance(holder, list) else holder.get(key, {})
        if isinstance(holder, dict):
            holder.pop(keys[-1], None)
    try:
        return _build(data)
    except ValidationError:
        return None


def _problem(tree: Tree, keys: Keys, message: str, at: str = "value") -> Problem:
    place = tree.place(keys)
    exact = keys in tree.places
    return Problem(
        place.value if exact and at == "value" else place.key, place.shown if exact else dotted(keys), message
    )


def _position(problem: Problem) -> tuple[bool, int, int]:
    found = re.search(r":(\d+):(\d+)$", problem.where)
    return (False, int(found[1]), int(found[2])) if found else (problem.where.startswith("--set"), 0, 0)
