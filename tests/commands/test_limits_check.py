"""`compress check` names limits that the test images cannot settle, and photos that would be enlarged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compress.commands import limits_check
from compress.commands.limits_check import unsettled, upscaled
from compress.recipe import loader, schema
from compress.verdict.intervals import wilson

ROOT = Path(__file__).parents[2]
NAMES = ("cat", "dog")


def said(counts: tuple[int, int], **require: object) -> str:
    text = ", ".join(f"{name}: {value}" for name, value in require.items())
    loaded = loader.load(ROOT / "recipes" / "mobilenet.yaml", [f"require={{{text}}}"])
    return "\n".join(unsettled(loaded, np.array(counts), NAMES))


@pytest.mark.parametrize(
    ("counts", "require", "part"),
    [
        ((20, 20), {"max_top1_drop": 5.0}, "even a student that answers like the teacher is undecided"),
        ((120, 120), {"max_top1_drop": 2.0}, "passes only if it changes less than"),
        ((20, 20), {"min_top1": 0.95}, "40 test images that are all right certify 91.2 %; it takes at least 73"),
        ((500, 9), {"min_recall": 0.8}, "class 'dog' has 9 test images, and all of them right certify 70.1 %"),
        ((500, 9), {"min_recall": "{dog: 0.8}"}, "it takes at least 16"),
        ((500, 500), {"min_top1": 1.0}, "no number of images certifies 100 %"),
    ],
)
def test_a_limit_that_cannot_be_settled_is_named(
    counts: tuple[int, int], require: dict[str, object], part: str
) -> None:
    assert part in said(counts, **require)


@pytest.mark.parametrize(
    ("counts", "require"),
    [
        ((2500, 2500), {"max_top1_drop": 2.5}),
        ((37, 36), {"min_top1": 0.95}),
        ((500, 9), {"min_recall": "{cat: 0.9}"}),
        ((500, 16), {"min_recall": 0.8}),
    ],
)
def test_a_limit_that_can_be_settled_is_not(counts: tuple[int, int], require: dict[str, object]) -> None:
    assert said(counts, **require) == ""


@pytest.mark.parametrize("limit", [0.5, 0.8, 0.95, 0.99])
def test_the_number_of_images_is_the_smallest_that_can_pass(limit: float) -> None:
    needed = int(limits_check._needed(1, limit).split()[-1].replace(",", ""))
    assert wilson(needed, needed)[0] > limit >= wilson(needed - 1, needed - 1)[0]


@pytest.mark.parametrize(("side", "noted"), [(48, True), (96, False)])
def test_small_photos_are_noted(tmp_path: Path, side: int, noted: bool) -> None:
    for name in NAMES:
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.new("RGB", (side, side + 20), (number * 40, 0, 0)).save(tmp_path / name / f"{number}.png")
    note = upscaled(schema.Data(source="folder", root=str(tmp_path), image_size=64), Path("/"))
    assert (note is not None) is noted
    assert not noted or "6 of 6 photos looked at are smaller than image_size 64 (median short side 48)" in note


def test_the_share_of_changed_answers_is_that_of_the_margin() -> None:
    from compress.verdict.sample_size import certifiable_margin

    share = limits_check._largest_flips(240, 0.05)
    assert share is not None and certifiable_margin(240, 240 * share) == pytest.approx(5.0, abs=1e-3)
