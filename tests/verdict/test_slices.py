"""Regressions on slices, recomputed by hand from planted logits."""

from __future__ import annotations

import numpy as np
import pytest

from compress.verdict import slices
from compress.verdict.intervals import mcnemar_exact

CLASSES = ("cat", "dog", "owl", "empty")


def planted() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Build logits of 300 images of three classes.

    The student loses 20 owls of which the teacher was unsure, the float student 2 of them.
    """
    labels = np.repeat([0, 1, 2], 100)
    teacher = np.zeros((300, 4), np.float32)
    teacher[np.arange(300), labels] = 6.0
    teacher[280:, 2], teacher[5, 0] = 0.5, 3.0  # the unsure ones
    floats, student = teacher.copy(), teacher.copy()
    floats[298:, 1] = 9.0
    student[280:, 1] = 9.0
    student[5, 3] = 20.0
    return labels, {"teacher": teacher, "float": floats, "student": student}


LABELS, LOGITS = planted()


def test_the_unsure_pictures_are_where_it_got_worse() -> None:
    rows = slices.unsure_rows(LABELS, LOGITS, teacher="teacher", model="student", against=["teacher", "float"])

    assert [(row["slice"], row["against"], row["n"]) for row in rows] == [
        ("least sure tenth", "teacher", 30),
        ("least sure tenth", "float", 30),
        ("least sure quarter", "teacher", 75),
        ("least sure quarter", "float", 75),
    ]
    tenth = rows[0]
    assert (tenth["lost"], tenth["gained"], tenth["top1"], tenth["reference"]) == (21, 0, 9 / 30, 1.0)
    assert tenth["drop_points"] == pytest.approx(70) and tenth["drop_ci95"][0] < 70 < tenth["drop_ci95"][1]
    assert tenth["mcnemar_p"] == mcnemar_exact(21, 0)
    assert rows[1]["lost"] == 19


def test_a_class_is_worse_only_beyond_chance() -> None:
    rows = {
        row["class"]: row
        for row in slices.class_rows(LABELS, LOGITS["teacher"], LOGITS["student"], LOGITS["float"], CLASSES)
    }

    assert (rows["owl"]["worse"], rows["owl"]["lost"], rows["owl"]["float_lost"], rows["owl"]["float_worse"]) == (
        True,
        20,
        18,
        True,
    )
    assert (rows["cat"]["worse"], rows["cat"]["lost"]) == (False, 1)  # one picture is chance
    assert rows["owl"]["drop_points"] == pytest.approx(20) and rows["owl"]["float"] == 0.98
    assert rows["empty"] == {"class": "empty", "n": 0, "teacher": None, "student": None, "lost": 0, "gained": 0}


def test_a_class_that_got_better_is_not_worse() -> None:
    rows = slices.class_rows(LABELS, LOGITS["student"], LOGITS["teacher"], None, CLASSES)

    assert [row.get("worse") for row in rows] == [False, False, False, None] and "float" not in rows[0]


def test_pictures_of_the_slice_and_of_the_worse_class() -> None:
    images = np.arange(300, dtype=np.uint16).astype(np.uint8)[:, None, None, None].repeat(3, axis=3)
    rows = slices.class_rows(LABELS, LOGITS["teacher"], LOGITS["student"], None, CLASSES)

    found = slices.slice_images(images, LABELS, LOGITS["teacher"], LOGITS["student"], rows)

    assert found["slice_name"].tolist() == ["least sure tenth"] * 8 + ["class owl"] * 8
    assert (
        found["slice_images"].shape == (16, 1, 1, 3)
        and set(found["slice_labels"][8:]) == {2}
        and set(found["slice_student"][8:]) == {1}
    )
    assert found["slice_labels"][0] == 0 and found["slice_student"][0] == 3  # the surest mistake first
    assert (found["slice_margin"][1:8] < 0.3).all()
