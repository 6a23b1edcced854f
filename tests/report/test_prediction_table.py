"""predictions.csv: what every model answers for each test image."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.report import prediction_table

CLASSES = ("cat", "=1+1", "-3", 'a,b "c"')
LABELS = np.array([0, 1, 2, 3])
LOGITS = np.eye(4, dtype=np.float32)[[0, 1, 3, 3]] * 9 - 2


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def written(path: Path, names: list[str] | None, logits: dict[str, Any], **more: Any) -> list[dict[str, str]]:
    prediction_table.write(path, LABELS, logits, CLASSES, names, **more)
    return rows(path)


def test_a_row_has_path_label_answers_and_probabilities(tmp_path: Path) -> None:
    names = ["cat/1.jpg", "b/Käfer, grün.jpg", 'c/a "b".jpg', "d/two\nlines.jpg"]
    found = written(tmp_path / "p.csv", names, {"teacher.onnx": LOGITS, "student.int8.onnx": -LOGITS})
    assert [row["path"] for row in found] == names
    assert list(found[0]) == [
        "path",
        "label",
        *(f"{file} {what}" for file in ("teacher.onnx", "student.int8.onnx") for what in ("answer", "probability")),
    ]
    assert [row["label"] for row in found] == ["cat", "'=1+1", "-3", 'a,b "c"']
    assert [row["teacher.onnx answer"] for row in found] == ["cat", "'=1+1", 'a,b "c"', 'a,b "c"']
    share = np.exp(9) / (np.exp(9) + 3)
    assert all(abs(float(row["teacher.onnx probability"]) - share) < 1e-6 for row in found)
    assert all(abs(float(row["student.int8.onnx probability"]) - 1 / 3) < 1e-3 for row in found)


def test_images_without_files_have_their_number(tmp_path: Path) -> None:
    assert [row["path"] for row in written(tmp_path / "p.csv", None, {"a.onnx": LOGITS})] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_no_path_is_a_formula_and_each_still_leads_to_its_file(tmp_path: Path, start: str) -> None:
    folder = tmp_path / "photos"
    name = f"{start}SUM(A1)/a.jpg"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_bytes(b"x")
    found = written(tmp_path / "p.csv", [name, "b", "c", "d"], {"a.onnx": LOGITS})
    assert not found[0]["path"].startswith(start) and (folder / found[0]["path"]).read_bytes() == b"x"


def test_a_name_that_is_no_utf_8_is_written_as_utf_8(tmp_path: Path) -> None:
    broken = b"cat/caf\xe9.jpg".decode("utf-8", "surrogateescape")
    assert written(tmp_path / "p.csv", [broken, "b", "c", "d"], {"a.onnx": LOGITS})[0]["path"] == "cat/caf\\udce9.jpg"


def test_answers_that_are_probabilities_are_taken_as_they_are() -> None:
    softmax = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]], np.float32)
    sigmoid = np.array([[0.9, 0.6, 0.1], [0.2, 0.1, 0.7]], np.float32)
    assert np.allclose(prediction_table.probabilities(softmax, foreign=False), softmax)
    assert np.allclose(prediction_table.probabilities(sigmoid, foreign=True), sigmoid)
    # Of this project's own files such values are small logits.
    assert np.allclose(prediction_table.probabilities(sigmoid, foreign=False).sum(axis=1), 1)
    assert np.allclose(prediction_table.probabilities(np.log(softmax), foreign=True), softmax)
