"""A network that is not shown to beat always naming the commonest class is said to be so, by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compress.core.records.base import File
from compress.core.records.deployment import Measured
from compress.core.records.training import Network, Normalization, Trained, TrainingData
from compress.core.records.warnings import RunWarning
from compress.verdict import majority_baseline

NONE = File(Path("none"), "", 0)


def taught(top1: float, tmp_path: Path, counts: tuple[int, ...] = (40, 40, 40, 40)) -> list[RunWarning]:
    """What is said of a teacher with an accuracy on a quarter of so many pictures of each class."""
    path = tmp_path / "labels.npy"
    np.save(path, np.repeat(np.arange(len(counts)), counts))
    data = TrainingData(NONE, File.of(path), tuple("abcd"), 32, "none", 0.25, 0)
    network = Network("resnet8", None, 4, 32, Normalization((0.5,) * 3, (0.25,) * 3))
    return majority_baseline.of_teacher(Trained(network, NONE, top1, 1, 1, 1, 1.0), data)


def test_a_teacher_at_chance_is_named_with_its_interval(tmp_path: Path):
    (said,) = taught(0.3, tmp_path)
    # Wilson's interval of 12 of 40: (0.3 + 1.96^2 / 80 +- 1.96 sqrt(0.3 0.7 / 40 + 1.96^2 / 6400)) / (1 + 1.96^2 / 40)
    assert said.text.startswith(
        "teacher resnet8: 30.00 % [18.07, 45.43] on 40 validation images is not shown to be better "
        "than always naming the commonest"
    )
    assert "(25.00 %)" in said.text and "has little to teach" in said.text


def test_a_teacher_that_learnt_something_is_not(tmp_path: Path):
    assert taught(0.5, tmp_path) == []


def test_the_commonest_class_counts_not_their_number(tmp_path: Path):
    assert taught(0.5, tmp_path, counts=(20, 20, 20, 100)) != []


@pytest.mark.parametrize(("top1", "said"), [(0.25, 1), (0.6, 0)])
def test_the_file_that_ships_is_judged_on_the_test_pictures(top1: float, said: int):
    models = (
        {"file": "teacher.onnx", "top1": 0.25},
        {"file": "student.int8.onnx", "top1": top1},
        {"file": "student.fp32.onnx", "top1": 0.25},
    )
    measured = Measured(models, (), ({"n": 24},) * 4, {}, (), NONE, NONE, NONE, NONE, ships="student.int8.onnx")
    sentences = majority_baseline.of_shipped(measured)
    assert len(sentences) == said and all(
        one.text.startswith("student.int8.onnx: 25.00 %") and "96 test images" in one.text for one in sentences
    )
