"""A recipe file to a checked `schema.Recipe`: every mistake at once, each with its line and column. Torch-free."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from compress import crosschecks, yamltree
from compress.errors import Problem, RecipeError
from compress.schema import METHOD_SECTIONS, Candidate, Quantize, Recipe, Section, Train
from compress.yamltree import Keys, Place, Tree, dotted

_OWN = ("method", "baseline")  # distill's keys that belong to no method
_SECTIONS = tuple(name for name in METHOD_SECTIONS if name != "none")


@dataclass(frozen=True)
class Loaded:
    """A checked recipe and where its values stand. `name` is the recipe's name or the file's; `notices` are sentences for the user."""

    recipe: Recipe
    path: Path
    name: str
    notices: tuple[str, ...]
    tree: Tree = field(repr=False, compare=False)

    def where(self, key: str) -> str:
        """`path:line:column` of a dotted key, or its --set flag; of the nearest section around it where the recipe leaves it out."""
        keys = yamltree.split(key)
        own = ("distill", self.recipe.distill.method[0], *keys[1:])
        return self.tree.place(own if keys[0] == "distill" and own in self.tree.places else keys).key

    def file(self, text: str) -> Path:
        """A path that the recipe names: relative to the recipe, ~ expanded."""
        return self.path.parent / Path(text).expanduser()


@dataclass(frozen=True)
class _Override:
    """One `--set key=value`."""

    flag: str
    keys: Keys
    data: Any
    places: dict[Keys, Place]

    @property
    def flat(self) -> bool:
        """Whether it is a key of the selected method: `distill.alpha=2`."""
        return self.keys[0] == "distill" and len(self.keys) == 2 and self.keys[1] not in _OWN and not _is_section(self.keys[1], self.data)


def load(path: Path, overrides: Sequence[str] = (), *, allow_code: bool = False) -> Loaded:
    """Read, override and check a recipe. `allow_code`: networks may be Python code of the user's own.

    Raises: UsageError where there is no such file, RecipeError with all mistakes.
    """
    tree = yamltree.read(path)
    problems = tree.problems
    parsed = [item for number, text in enumerate(overrides, 1) if (item := _parse_override(text, number, problems))]
    notices = _apply(tree, parsed, problems)
    _fill_empty(tree.data, Recipe)
    recipe = _validate(tree, problems, notices, allow_code=allow_code)
    if problems or recipe is None:
        raise RecipeError(sorted(problems, key=_position))
    name = recipe.name or re.sub(r"^[^A-Za-z0-9]+|[^A-Za-z0-9._-]", "-", path.stem).strip("-") or "recipe"
    notices += [f"{tree.place(keys).key}: {sentence}" for keys, sentence in crosschecks.remarks(recipe)]
    return Loaded(recipe.model_copy(update={"name": name}), path, name, tuple(notices), tree)


def resolve(recipe: Recipe) -> Recipe:
    """The recipe with the defaults that follow from other keys filled in; what depends on the data or the machine stays null or auto."""
    data = recipe.data.model_copy(update={"image_size": crosschecks.image_size(recipe.data), "augment": crosschecks.augment(recipe.data)})
    candidates = tuple(candidate.model_copy(update={"train": _candidate_train(candidate)}) for candidate in recipe.teacher.candidates)
    starts = {(crosschecks.network(one.model).mobile, one.weights != "none") for one in recipe.student.networks}
    if len(starts) == 1:
        ((mobile, pretrained),) = starts
        train = resolved_train(recipe.train, mobile=mobile, pretrained=pretrained, seed=recipe.seed)
    else:  # `student.choose` among unlike networks: what follows from the network stays null until it is picked
        train = recipe.train.model_copy(update={"seed": recipe.seed if recipe.train.seed is None else recipe.train.seed})
    teacher = recipe.teacher.model_copy(update={"candidates": candidates})
    return recipe.model_copy(update={"data": data, "teacher": teacher, "train": train, "quantize": _resolved_quantize(recipe.quantize, train)})


def _resolved_quantize(quantize: Quantize, train: Train) -> Quantize:
    """Tuning lasts a tenth of the training, at a tenth of its rate, where the recipe does not say otherwise."""
    if quantize.scheme != "qat" or train.epochs is None or train.lr is None:
        return quantize
    epochs = max(2, round(train.epochs / 10)) if quantize.epochs is None else quantize.epochs
    return quantize.model_copy(update={"epochs": epochs, "lr": train.lr / 10 if quantize.lr is None else quantize.lr})


def _candidate_train(candidate: Candidate) -> Train | None:
    """null stays null where a checkpoint is taken as it is."""
    pretrained = candidate.weights != "none"
    if candidate.onnx is not None or (pretrained and candidate.train is None):
        return None
    mobile = crosschecks.network(candidate.model).mobile
    return resolved_train(candidate.train, mobile=mobile, pretrained=pretrained, seed=0, scratch_epochs=crosschecks.CANDIDATE_EPOCHS)


def resolved_train(
    train: Train | None, *, mobile: bool, pretrained: bool, seed: int, scratch_epochs: int = crosschecks.STUDENT_EPOCHS
) -> Train:
    """`train` with all but views and threads filled in: the papers' values from scratch, few gentle epochs from pretrained weights."""
    train = train or Train()
    epochs = train.epochs or (crosschecks.PRETRAINED_EPOCHS if pretrained else scratch_epochs)
    rate = 0.005 if pretrained else 0.01 if mobile else 0.05
    warmup = train.schedule.warmup_epochs
    if warmup is None:
        warmup = min(1.0, epochs / 4) if pretrained else 0.0
    return train.model_copy(
        update={
            "epochs": epochs,
            "lr": rate if train.lr is None else train.lr,
            "seed": seed if train.seed is None else train.seed,
            "schedule": train.schedule.model_copy(update={"warmup_epochs": warmup}),
        }
    )


def dump(recipe: Recipe) -> str:
    """YAML of a recipe; `load` gives the same recipe back."""
    return yamltree.write(recipe.plain())


def _parse_override(text: str, number: int, problems: list[Problem]) -> _Override | None:
    flag = f"--set {text}"
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        problems.append(Problem(flag, "", "expected key=value, such as train.epochs=2"))
        return None
    before = len(problems)
    data, places = yamltree.parse(value, flag, number, key, problems)
    keys = yamltree.split(key)
    if not places:  # an empty value is null
        places = {(): Place(flag, flag, number, key)}
    return _Override(flag, keys, data, places) if len(problems) == before else None


def _apply(tree: Tree, overrides: list[_Override], problems: list[Problem]) -> list[str]:
    """Sort distill's flat keys into their method's section and apply the overrides in order; returns notices."""
    flat = _sort_flat(tree, problems)
    base = _method(tree)
    for item in overrides:
        if item.flat:
            continue  # it belongs to the method that is selected in the end
        keys = tree.real(item.keys)
        try:
            tree.put(keys, item.data, item.places)
        except KeyError as error:
            problems.append(Problem(item.flag, dotted(keys), error.args[0]))
        if keys == ("distill",):
            flat = _sort_flat(tree, problems)
            base = _method(tree)
    method = _method(tree)
    for item in overrides:
        if item.flat:
            _put_flat(tree, item, method, problems)
    methods = method if isinstance(method, list) else [method]
    if base not in methods and flat and all(isinstance(one, str) for one in methods):
        return [f"distill.method is {' and '.join(methods)}: {', '.join(flat)} belong to {base} and are not used"]
    return []


def _is_section(key: str | int, value: Any) -> bool:
    return key in _SECTIONS and (isinstance(value, dict) or value is None)


def _method(tree: Tree) -> Any:
    distill = tree.data.get("distill")
    method = distill.get("method", "dhkd") if isinstance(distill, dict) else "dhkd"
    return method[0] if isinstance(method, list) and len(method) == 1 else method


def _sort_flat(tree: Tree, problems: list[Problem]) -> list[str]:
    """Move distill's flat keys into the section of the method named beside them; returns the moved keys."""
    distill = tree.data.get("distill")
    if not isinstance(distill, dict):
        return []
    method = _method(tree)
    mine, moved = _fields(method), []
    # A section that is nobody's flat key stays, for the schema to refuse; all flat ones are taken out first: kd has a key named kd.
    flat = [key for key in distill if key not in _OWN and not _is_section(key, distill[key]) and (key in mine or key not in _SECTIONS)]
    taken = {key: (tree.place(("distill", key)), *tree.take(("distill", key))) for key in flat}
    for key, (place, data, places) in taken.items():
        target: Keys = ("distill", method, key)
        if key not in mine:
            problems += _foreign(key, method, place.key)
        elif target in tree.places:
            twice = f"given twice, also as distill.{method}.{key} at {tree.place(target).key}"
            problems.append(Problem(place.key, f"distill.{key}", twice))
        elif distill.get(method) is None or isinstance(distill[method], dict):
            tree.put(target, data, places)
            moved.append(key)
    return moved


def _put_flat(tree: Tree, item: _Override, method: Any, problems: list[Problem]) -> None:
    key = str(item.keys[1])
    if key in _fields(method):
        try:
            tree.put(("distill", method, key), item.data, item.places)
        except KeyError as error:
            problems.append(Problem(item.flag, dotted(item.keys), error.args[0]))
    else:
        problems += _foreign(key, method, item.flag)


def _fields(method: Any) -> tuple[str, ...]:
    return tuple(METHOD_SECTIONS[method].model_fields) if isinstance(method, str) and method in METHOD_SECTIONS else ()


def _foreign(key: str, method: Any, where: str) -> list[Problem]:
    """A flat key that the selected method does not have."""
    owners = [name for name in METHOD_SECTIONS if key in _fields(name)]
    if not owners:
        everyone = [field for name in METHOD_SECTIONS for field in _fields(name)]
        hint = crosschecks.did_you_mean(key, [*_OWN, *_fields(method), *_SECTIONS, *everyone])
        return [Problem(where, f"distill.{key}", f"unknown key{hint}")]
    if isinstance(method, list) and len(method) > 1 and set(owners) & set(map(str, method)):
        places = " or ".join(f"distill.{name}.{key}" for name in owners if name in method)
        return [Problem(where, f"distill.{key}", f"several methods are listed, so their keys stand in their own sections: {places}")]
    if not isinstance(method, str) or method not in METHOD_SECTIONS:
        return []  # the wrong method is reported already
    return [Problem(where, f"distill.{key}", f"belongs to method {' and '.join(map(repr, owners))}, but distill.method is {method!r}")]


def _fill_empty(data: Any, section: type[Section]) -> None:
    """A section that is there but empty (`require:` with everything commented out) has its defaults."""
    for name, info in section.model_fields.items():
        key = info.alias or name
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section) and isinstance(data, dict) and key in data:
            data[key] = {} if data[key] is None else data[key]
            _fill_empty(data[key], info.annotation)


def _validate(tree: Tree, problems: list[Problem], notices: list[str], *, allow_code: bool) -> Recipe | None:
    """Schema, then what holds between keys; None where the schema alone is broken."""
    wrong: list[Keys] = []
    if "validate_" in tree.data:  # the field's Python name is no key
        place = tree.place(("validate_",))
        problems.append(Problem(place.key, "validate_", "unknown key (did you mean 'validate'?)"))
        tree.take(("validate_",))
    recipe = None
    try:
        recipe = _build(tree.data)
    except ValidationError as error:
        found = crosschecks.explain(error, tree.data)
        problems += [_problem(tree, item.keys, item.message, item.at) for item in found]
        wrong = [item.keys for item in found]
        recipe = _without(tree.data, wrong)
    for keys, message in crosschecks.wrong_networks(tree.data, allow_code=allow_code):
        problems.append(_problem(tree, keys, message))
        wrong.append(keys)
    if recipe is not None:
        broken = {keys[0] for keys in wrong if keys}
        for item in crosschecks.contradictions(recipe):
            problem = _problem(tree, item.keys, item.message, item.at)
            if item.excuse in tree.places and tree.places[item.excuse].flag > tree.place(item.keys).flag:
                notices.append(str(problem))
            elif not broken & item.sections:
                problems.append(problem)
    return recipe


def _build(data: Any) -> Recipe:
    """JSON, not Python values: strict there means no text for numbers, and still lists for tuples."""
    return Recipe.model_validate_json(json.dumps(data), strict=True)


def _without(data: Any, wrong: list[Keys]) -> Recipe | None:
    """The recipe with the wrong values left at their defaults, so that the other checks can run; None where they have none."""
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
    return Problem(place.value if exact and at == "value" else place.key, place.shown if exact else dotted(keys), message)


def _position(problem: Problem) -> tuple[bool, int, int]:
    found = re.search(r":(\d+):(\d+)$", problem.where)
    return (False, int(found[1]), int(found[2])) if found else (problem.where.startswith("--set"), 0, 0)
