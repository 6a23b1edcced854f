"""Further forms of the student's files: made only for the student, each held against its source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import export.graph.from_torch
from compress.core.errors import StageError
from compress.core.records.base import File
from compress.recipe.schema import Export
from compress.stages import package
from export.runtime import Model
from tests.stages.conftest import TARGET

pytestmark = pytest.mark.slow


def run(work, models, versions, **asked):
    return package.run_package(Export(**asked), context=work, models=models, target=TARGET, versions=versions)


def test_each_form_is_made_of_both_student_files(work, models, versions, prepared):
    made = run(work, models, versions, fixed_batch=True, ort=True).files

    assert [(one.name, one.kind, one.source, one.target) for one in made] == [
        ("student.fp32.batch1.onnx", "batch1", "student.fp32.onnx", None),
        ("student.fp32.ort", "ort", "student.fp32.onnx", TARGET),
        ("student.fp32.operators.config", "operators", "student.fp32.onnx", TARGET),
        ("student.int8.batch1.onnx", "batch1", "student.int8.onnx", TARGET),
        ("student.int8.ort", "ort", "student.int8.onnx", TARGET),
        ("student.int8.operators.config", "operators", "student.int8.onnx", TARGET),
    ]
    files = {one.name: one for one in made}
    assert (
        "com.microsoft:QLinearConv" in files["student.int8.ort"].operators
        and files["student.int8.batch1.onnx"].operators is None
    )
    assert all(one.file == File.of(one.file.path) for one in made)
    images = np.load(prepared.test_images.path)
    source = next(model for model in models if model.name == "student.int8.onnx")
    expected = Model.load(source.file.path).run(images)
    for name in ("student.int8.batch1.onnx", "student.int8.ort"):
        np.testing.assert_allclose(Model.load(files[name].file.path).run(images), expected, atol=1e-4)


def test_only_what_is_asked_for_is_made(work, models, versions):
    assert [one.kind for one in run(work, models, versions, fixed_batch=True).files] == ["batch1", "batch1"]
    assert {one.kind for one in run(work, models, versions, ort=True).files} == {"ort", "operators"}


def test_a_form_that_answers_otherwise_fails_the_stage(work, models, versions, monkeypatch):
    def refuse(source: Path, target: Path) -> float:
        raise export.graph.from_torch.ExportError("x.onnx: with a fixed batch the logits differ")

    monkeypatch.setattr(export.graph.from_torch, "fixed_batch", refuse)
    with pytest.raises(StageError, match="package: x.onnx: with a fixed batch the logits differ"):
        run(work, models, versions, fixed_batch=True)
