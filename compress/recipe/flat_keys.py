"""Keys of one method that stand flat in `distill`: `distill.temperature` means `distill.<method>.temperature`.

`loader.load` calls `sort_flat_keys` before the recipe is checked, so that the schema knows the methods' sections alone.
"""

from __future__ import annotations

from typing import Any

from compress.core.errors import Problem
from compress.recipe.error_messages import did_you_mean
from compress.recipe.schema import METHOD_SECTIONS
from compress.recipe.yaml_parser import Keys
from compress.recipe.yaml_tree import Tree

# Keys of `distill` that belong to no method.
_OWN = ("method", "baseline", "auto")
_SECTIONS = tuple(name for name in METHOD_SECTIONS if name != "none")


def selected_method(tree: Tree) -> Any:
    """Return the value of `distill.method`; a list of one method is that method. It has not been checked yet."""
    distill = tree.data.get("distill")
    method = distill.get("method", "dhkd") if isinstance(distill, dict) else "dhkd"
    return method[0] if isinstance(method, list) and len(method) == 1 else method


def is_flat(keys: Keys, value: Any) -> bool:
    """Return whether `keys` is a method's key without its section, such as `distill.alpha`."""
    return keys[0] == "distill" and len(keys) == 2 and keys[1] not in _OWN and not _is_section(keys[1], value)


def sort_flat_keys(tree: Tree, problems: list[Problem]) -> list[str]:
    """Move the flat keys of `distill` into the section of the selected method.

    Args:
        tree: the recipe's values, changed in place.
        problems: receives the keys that the selected method does not have, and those given twice.

    Returns:
        The names of the moved keys.
    """
    distill = tree.data.get("distill")
    if not isinstance(distill, dict):
        return []
    method = selected_method(tree)
    own, moved = _fields(method), []
    # A value under a method's name that is no section and no flat key of this method stays: the schema refuses it.
    flat = [key for key in distill if is_flat(("distill", key), distill[key]) and (key in own or key not in _SECTIONS)]
    # All are taken out before any is put back, because method kd has a key named kd.
    taken = {key: (tree.place(("distill", key)), *tree.take(("distill", key))) for key in flat}
    for key, (place, data, places) in taken.items():
        target = section_key(key, method)
        if target is None:
            problems += not_in_method(key, method, place.key)
        elif target in tree.places:
            twice = f"given twice, also as distill.{method}.{key} at {tree.place(target).key}"
            problems.append(Problem(place.key, f"distill.{key}", twice))
        elif distill.get(method) is None or isinstance(distill[method], dict):
            tree.put(target, data, places)
            moved.append(key)
    return moved


def section_key(key: str, method: Any) -> Keys | None:
    """Return where a flat key belongs: in the section of `method`. None where that method has no such key."""
    return ("distill", method, key) if key in _fields(method) else None


def not_in_method(key: str, method: Any, where: str) -> list[Problem]:
    """Describe a flat key that the selected method does not have, with the nearest key or the method that has it."""
    owners = [name for name in METHOD_SECTIONS if key in _fields(name)]
    if not owners:
        everyone = [field for name in METHOD_SECTIONS for field in _fields(name)]
        hint = did_you_mean(key, [*_OWN, *_fields(method), *_SECTIONS, *everyone])
        return [Problem(where, f"distill.{key}", f"unknown key{hint}")]
    if isinstance(method, list) and len(method) > 1 and set(owners) & set(map(str, method)):
        places = " or ".join(f"distill.{name}.{key}" for name in owners if name in method)
        message = f"several methods are listed, so their keys stand in their own sections: {places}"
        return [Problem(where, f"distill.{key}", message)]
    if method == "auto":
        places = " or ".join(f"distill.{name}.{key}" for name in owners)
        message = f"distill.method is auto, so the keys of methods stand in their own sections: {places}"
        return [Problem(where, f"distill.{key}", message)]
    if not isinstance(method, str) or method not in METHOD_SECTIONS:
        return []  # the wrong method is reported already
    message = f"belongs to method {' or '.join(map(repr, owners))}, but distill.method is {method!r}"
    return [Problem(where, f"distill.{key}", message)]


def _is_section(key: str | int, value: Any) -> bool:
    return key in _SECTIONS and (isinstance(value, dict) or value is None)


def _fields(method: Any) -> tuple[str, ...]:
    return tuple(METHOD_SECTIONS[method].model_fields) if isinstance(method, str) and method in METHOD_SECTIONS else ()
