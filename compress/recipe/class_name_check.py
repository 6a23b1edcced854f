"""Checks the class names that a recipe mentions, once the classes of the data are known. Loads no torch."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

from compress.core.errors import Problem, RecipeError
from compress.recipe.error_messages import did_you_mean
from compress.recipe.loader import Loaded
from compress.recipe.schema import Train
from compress.recipe.yaml_parser import Keys, dotted

# Classes that a message lists.
LISTED = 20


def check_class_names(loaded: Loaded, classes: Sequence[str]) -> None:
    """Check that each class that the recipe names is one of the data. Raises RecipeError with all that are not."""
    known = {unicodedata.normalize("NFC", name) for name in classes}
    problems = []
    for keys, names in _named(loaded):
        for name in names:
            if unicodedata.normalize("NFC", name) not in known:
                shown = ", ".join(classes[:LISTED]) + (
                    f" and {len(classes) - LISTED} more" if len(classes) > LISTED else ""
                )
                place = loaded.tree.place((*keys, name))
                message = f"no class of the data{did_you_mean(name, classes)}; there are {shown}"
                problems.append(Problem(place.key, dotted((*keys, name)), message))
    if problems:
        raise RecipeError(problems)


def _named(loaded: Loaded) -> list[tuple[Keys, Any]]:
    """Return (keys, class names) of every place that may name classes."""
    recipe = loaded.recipe
    trainings: list[tuple[Keys, Train | None]] = [(("train",), recipe.train)]
    for number, candidate in enumerate(recipe.teacher.candidates):
        trainings.append((("teacher", "candidates", number, "train"), candidate.train))
    values: list[tuple[Keys, Any]] = [(("require", "min_recall"), recipe.require.min_recall)]
    values += [((*keys, "class_weights"), train.class_weights) for keys, train in trainings if train is not None]
    return [(keys, value) for keys, value in values if isinstance(value, dict)]
