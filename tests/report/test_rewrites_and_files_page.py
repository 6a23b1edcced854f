"""The page's tables of rewrites and of further files."""

from __future__ import annotations

from typing import Any

from compress.report.page import section
from compress.report.read import Source
from compress.report.schema import Report
from compress.report.sections.reproduce import manifest

REWRITE = {
    "name": "HardSwish to Mul",
    "nodes": 28,
    "kept": True,
    "reason": "more integer kernels",
    "files": "int8",
    "max_abs_diff": 4.1e-7,
    "limit": 1e-6,
    "images": 64,
    "integer_share": 0.516,
    "rewritten_share": 0.929,
}
ORT = {
    "file": "student.int8.ort",
    "kind": "ort",
    "source": "student.int8.onnx",
    "target": "arm64",
    "sha256": "ab" * 32,
    "bytes": 969336,
    "max_abs_diff": 0.0,
    "operators": ["ai.onnx:Cast", "com.microsoft:QLinearConv"],
}


def source(**keys: Any) -> Source:
    return Source(Report.model_validate(keys), (), {}, {}, [])


def shown(**keys: Any) -> str:
    return section("repeat", manifest(source(**keys)))


def test_kept_and_refused_rewrites_stand_with_their_numbers() -> None:
    refused = {**REWRITE, "kept": False, "reason": "the logits differ", "integer_share": None, "rewritten_share": None}

    text = shown(export={"rewrites": [REWRITE, refused]})

    assert "kept (int8)" in text and "refused (int8)" in text and "the logits differ" in text
    assert "4.1e-07 of 1.0e-06" in text and "51.6 %" in text and "92.9 %" in text and "None" not in text


def test_further_files_name_target_size_and_kernels() -> None:
    batch = {**ORT, "file": "student.fp32.batch1.onnx", "kind": "batch1", "target": None, "operators": None}

    text = shown(package=[batch, ORT])

    assert "student.int8.ort" in text and "arm64" in text and "com.microsoft:QLinearConv" in text and "ab" * 32 in text
    assert "any" in text and "None" not in text


def test_without_them_there_is_nothing_to_show() -> None:
    titles = [fold.title for fold in manifest(source(export={"rewrites": []}, package=[])).folds]

    assert titles == ["Files and checksums"]
