"""The page's part on slices, and what it says about the measurement."""

from __future__ import annotations

import json
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.report.page import render
from tests.support import report_example as example

PAIR = {"lost": 9, "gained": 2, "drop_points": 7.0, "drop_ci95": [1.0, 13.0], "mcnemar_p": 0.065}
SLICE = {
    "slice": "least sure tenth",
    "share": 0.1,
    "margin_below": 0.2,
    "model": "student.int8.onnx",
    "against": "teacher.onnx",
    "top1": 0.43,
    "reference": 0.5,
    "n": 100,
    **PAIR,
}
TIMING = {
    "governor": None,
    "rounds": 60,
    "attempts": 3,
    "other_cores": 0.42,
    "photo": {"pictures": "16 photos of the data set, 640 x 480 pixels", "decoder": "Pillow 12"},
    "sustained": {"sentence": "After 600 s without a pause it is 20% slower."},
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    example.build(tmp_path, n=400)
    return tmp_path


def page(run: Path, **keys: Any) -> str:
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    (run / "report.json").write_text(json.dumps(report | keys))
    return render(run).read_text(encoding="utf-8")


def classes(run: Path, worse: bool) -> list[dict[str, Any]]:
    rows = json.loads((run / "report.json").read_text(encoding="utf-8"))["per_class"]
    return [{**row, **PAIR, "worse": worse and number == 3, "float_worse": False} for number, row in enumerate(rows)]


def test_slices_and_worse_classes_are_shown_with_their_pictures(run: Path) -> None:
    with np.load(run / "pictures.npz") as stored:
        arrays = dict(stored)
    count = 2
    extra = {
        "slice_images": arrays["images"][:count],
        "slice_labels": np.array([3, 4]),
        "slice_student": np.array([4, 3]),
        "slice_margin": np.array([0.1, 0.3]),
        "slice_name": np.array(["least sure tenth", "class Dress"]),
    }
    np.savez_compressed(run / "pictures.npz", **arrays, **extra)

    text = page(run, slices=[SLICE, {**SLICE, "against": "student.fp32.onnx"}], per_class=classes(run, True))

    assert 'id="slices"' in text and "Where it got worse" in text
    assert "least sure tenth" in text and "float student" in text and "class Dress" in text and "9 / 2" in text
    assert "Worse beyond chance (5 %, corrected for the number of classes): Dress." in text
    assert "2 of the images that were lost there" in text and "the teacher's lead 0.10" in unescape(text)


def test_no_class_that_got_worse_is_said(run: Path) -> None:
    assert "No class got worse beyond chance" in page(run, slices=[SLICE], per_class=classes(run, False))


def test_without_slices_there_is_no_such_part(run: Path) -> None:
    assert 'id="slices"' not in page(run)


def test_the_measurement_and_the_second_latency_are_described(run: Path) -> None:
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    rows = [{**row, "photo_latency_ms": {"p50": 12.5, "p50_ci95": [12.0, 13.0]}} for row in report["models"]]

    text = page(run, latency=TIMING, models=rows)

    assert (
        "60 rounds, measured 3 times because it was disturbed; other processes used 0.42 cores; clock governor: "
        "not shown by this host." in text
    )
    assert (
        "Photo to answer: decoding (Pillow 12), resizing and inference of 16 photos of the data set, 640 x 480 pixels."
        in text
    )
    assert "After 600 s without a pause it is 20% slower." in text
    assert "Photo to answer, p50" in text and "12.5 ms" in text
    assert "<dt>Attempts</dt>" in text and "<dt>Governor</dt>" not in text  # nothing is said of what is null


def test_a_requirement_names_its_file_precision_and_bytes(run: Path) -> None:
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    rows = [{**row, "sha256": "cd" * 32, "precision": "int8"} for row in report["requirements"]]

    assert f"student.int8.onnx · int8 · local · sha256 {'cd' * 6} · recipes/mobilenet.yaml:31:12" in page(
        run, requirements=rows
    )
