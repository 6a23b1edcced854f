"""The recipe's tables of methods, which load no torch, agree with the classes of the methods."""

from __future__ import annotations

import re
import typing
from functools import cache
from pathlib import Path

import pytest
import torch

from compress.methods import METHODS, Method, build_method
from compress.models.outline import Outline, outline
from compress.recipe.method_checks import NEED_LABELS, READ_MAPS, SHIP_ANOTHER, WEIGHTS
from compress.recipe.schema import METHOD_SECTIONS, METHOD_SUMMARIES, Distill
from compress.recipe.schema.methods import MethodName

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "methods.md"
# Methods that always have a loss: one of its weights excludes 0, or has no key.
ALWAYS_A_LOSS = {"simkd", "catkd", "none"}


@cache
def known(name: str) -> Outline:
    """Return the outline of a network for ten classes at 32 pixels."""
    return outline(name, classes=10, width=None, image_size=32)


def built(name: str) -> Method:
    """Return a method with its default settings, without memory or weights."""
    labels = torch.arange(10)
    with torch.device("meta"):
        return build_method(
            Distill(method=name),
            student=known("resnet8"),
            teacher=known("resnet8x4"),
            train_labels=labels,
            train_index=labels,
        )


def test_every_table_names_every_method() -> None:
    names = set(METHODS)
    assert set(METHOD_SECTIONS) == set(METHOD_SUMMARIES) == set(typing.get_args(MethodName)) - {"auto"} == names
    assert WEIGHTS.keys() | ALWAYS_A_LOSS == names and not WEIGHTS.keys() & ALWAYS_A_LOSS


@pytest.mark.parametrize("name", METHODS)
def test_the_page_lists_the_method(name: str) -> None:
    assert re.search(rf"^\| `{name}` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE), f"{PAGE.name} lacks {name}"


@pytest.mark.parametrize("name", METHODS)
def test_weights_maps_and_what_ships_are_those_of_the_class(name: str) -> None:
    assert set(WEIGHTS.get(name, ())) <= METHOD_SECTIONS[name].model_fields.keys()
    method = built(name)
    assert (name in READ_MAPS) == bool(set(method.student_taps + method.teacher_taps) - {"pooled"})
    assert (name in NEED_LABELS) == method.needs_labels
    assert (name in SHIP_ANOTHER) == (method.deployed_spec() is not None)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "none"])
def test_messages_begin_with_the_recipes_name(name: str) -> None:
    assert built(name).label() == f"distill.method: {name}"
