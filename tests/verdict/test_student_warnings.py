"""What stands beside the verdict although no limit asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.core.records.base import File
from compress.core.records.deployment import Measured
from compress.verdict import student_warnings

NONE = File(Path("none"), "", 0)


def measured(classes: dict[str, tuple[int, int]], top1: float, **more: Any) -> Measured:
    """`classes`: name -> (right, images)."""
    rows = tuple({"class": name, "n": n, "student": right / n if n else None} for name, (right, n) in classes.items())
    student = {"file": "student.int8.onnx", "role": "student", "top1": top1, "images": 204, **more}
    teacher = {"file": "teacher.onnx", "role": "teacher", "top1": more.get("teacher", 0.6)}
    return Measured((teacher, student), (), rows, {}, (), NONE, NONE, NONE, NONE, ships="student.int8.onnx")


def test_classes_that_are_hardly_ever_right_are_named_the_worst_first():
    found = {"tulip": (2, 34), "daisy": (30, 34), "rose": (0, 34), "iris": (12, 34), "none": (0, 0)}
    (warning,) = student_warnings.of_shipped(measured(found, 0.503))
    assert warning.affects_verdict and "gets 2 classes right" in warning.text and "top-1 of 50.3 %" in warning.text
    assert warning.text.endswith("does not show: rose: 0 of 34 right; tulip: 2 of 34 right")


@pytest.mark.parametrize(("images", "named"), [(2, False), (30, True)])
def test_a_class_of_so_few_images_that_chance_explains_it_is_not(images: int, named: bool):
    found = {f"c{index}": (15, 30) for index in range(5)} | {"rose": (0, images)}
    assert bool(student_warnings.of_shipped(measured(found, 0.5))) is named


@pytest.mark.parametrize(("agreement", "named"), [(0.3, True), (0.55, False), (0.7, False)])
def test_agreement_far_below_both_accuracies_is_named(agreement: float, named: bool):
    found = student_warnings.of_shipped(measured({}, 0.58, agreement_with_teacher=agreement))
    assert bool(found) is named and all("teacher's answer on only 30.0 %" in one.text for one in found)


@pytest.mark.parametrize(
    ("curve", "named"),
    [
        ([0.30, 0.41, 0.462, 0.503], True),
        ([0.30, 0.49, 0.495, 0.503], False),  # within noise
        ([0.30, 0.52, 0.51, 0.503], False),
        ([0.5], False),
        ([*np.linspace(0.3, 0.70, 99).tolist(), 0.70], False),
    ],
)
def test_a_training_that_still_improves_is_named(tmp_path: Path, curve: list[float], named: bool):
    path = tmp_path / "history.csv"
    path.write_text("epoch,top1_validation\n" + "".join(f"{n},{value}\n" for n, value in enumerate(curve, 1)))
    found = student_warnings.of_training(path, 375)
    assert bool(found) is named and all("from 46.2 to 50.3 %" in one.text for one in found)


def test_a_training_without_a_history_is_not(tmp_path: Path):
    assert student_warnings.of_training(tmp_path / "none.csv", 100) == []
    (tmp_path / "odd.csv").write_text("epoch,top1_validation\n1,\n2,nan\n")
    assert student_warnings.of_training(tmp_path / "odd.csv", 100) == []


@pytest.mark.parametrize(("counts", "named"), [((304, 16), True), ((100, 11), False), ((50, 0), True)])
def test_unequal_classes_are_named(counts: tuple[int, int], named: bool):
    found = student_warnings.of_imbalance(np.repeat([0, 1], counts), ["good", "faulty"])
    assert bool(found) is named and all("always naming good is right on" in one.text for one in found)
    assert all("train.sampling: balanced" in one.text for one in found)
