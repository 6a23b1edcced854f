"""--set, and the keys that stand flat in `distill`: each goes into the section of its method. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compress.core.errors import Problem
from compress.recipe import yaml_tree
from compress.recipe.error_messages import did_you_mean
from compress.recipe.schema import METHOD_SECTIONS
from compress.recipe.yaml_tree import Keys, Place, Tree, dotted

_OWN = ("method", "baseline")  # distill's keys that belong to no method
_SECTIONS = tuple(name for name in METHOD_SECTIONS if name != "none")


@dataclass(frozen=True)
class Override:
    """One `--set key=value`."""

    flag: str
    keys: Keys
    data: Any
    places: dict[Keys, Place]

    @property
    def flat(self) -> bool:
        """Whether it is a key of the selected method: `distill.alpha=2`."""
        return (
            self.keys[0] == "distill"
            and len(self.keys) == 2
            and self.keys[1] not in _OWN
            and not _is_section(self.keys[1], self.data)
        )


def parse_override(text: str, number: int, problems: list[Problem]) -> Override | None:
    """The `number`-th --set; None where it is not one, which is added to `problems`."""
    flag = f"--set {text}"
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        problems.append(Problem(flag, "", "expected key=value, such as train.epochs=2"))
        return None
    before = len(problems)
    data, places = yaml_tree.parse(value, flag, number, key, problems)
    keys = yaml_tree.split(key)
    if not places:  # an empty value is null
        places = {(): Place(flag, flag, number, key)}
    return Override(flag, keys, data, places) if len(problems) == before else None


def apply_overrides(tree: Tree, overrides: list[Override], problems: list[Problem]) -> list[str]:
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
    flat = [
        key
        for key in distill
        if key not in _OWN and not _is_section(key, distill[key]) and (key in mine or key not in _SECTIONS)
    ]
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


def _put_flat(tree: Tree, item: Override, method: Any, problems: list[Problem]) -> None:
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
        hint = did_you_mean(key, [*_OWN, *_fields(method), *_SECTIONS, *everyone])
        return [Problem(where, f"distill.{key}", f"unknown key{hint}")]
    if isinstance(method, list) and len(method) > 1 and set(owners) & set(map(str, method)):
        places = " or ".join(f"distill.{name}.{key}" for name in owners if name in method)
        return [
            Problem(
                where,
                f"distill.{key}",
                f"several methods are listed, so their keys stand in their own sections: {places}",
            )
        ]
    if not isinstance(method, str) or method not in METHOD_SECTIONS:
        return []  # the wrong method is reported already
    return [
        Problem(
            where,
            f"distill.{key}",
            f"belongs to method {' or '.join(map(repr, owners))}, but distill.method is {method!r}",
        )
    ]
