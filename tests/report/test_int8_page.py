"""The int8 section: trials, islands with their causes, and what ships."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compress.report.page import render
from compress.report.read import read_report, shipped
from tests.support import report_example as example


@pytest.fixture
def run(tmp_path: Path) -> Path:
    example.build(tmp_path, n=200)
    return tmp_path


def _page(run: Path, **changes: object) -> str:
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    int8 = next(row for row in report["models"] if row["file"] == "student.int8.onnx")
    int8.update(changes.pop("row", {}))
    (run / "report.json").write_text(json.dumps({**report, **changes}))
    return render(run).read_text(encoding="utf-8")


TRIALS = [
    {
        "name": "entropy, first in float",
        "kl": 0.00123,
        "agreement": 0.97,
        "bytes": 924_306,
        "kept": True,
        "chosen": True,
        "reason": "chosen: closest",
        "drop_points": 0.25,
        "drop_ci95": [-0.5, 1.0],
        "mcnemar_p": 0.7,
        "images": 700,
    },
    {
        "name": "<percentile 99.9>",
        "kl": None,
        "agreement": None,
        "bytes": None,
        "kept": False,
        "chosen": False,
        "reason": "not tried: 66.97 %",
    },
]


def test_trials_islands_and_what_ships_are_shown(run: Path) -> None:
    causes = [
        {"op": "HardSigmoid", "cause": "onnxruntime has no int8 kernel for HardSigmoid", "count": 28, "nodes": ["a"]}
    ]
    ships = {
        "file": "student.fp32.onnx",
        "sentence": "student.fp32.onnx ships instead of student.int8.onnx: not faster.",
    }
    page = _page(
        run,
        quantize={"target": "x86-vnni", "trials": TRIALS, "search": "entropy: KL 0.00123"},
        ships=ships,
        row={"island_causes": causes, "requantised": ["node_conv_7"]},
    )

    for text in (
        "entropy, first in float",
        "0.00123",
        "0.25",
        "&lt;percentile 99.9&gt;",
        "not tried: 66.97 %",
        "Search chose entropy: KL 0.00123",
        "no int8 kernel for HardSigmoid",
        "ships instead of student.int8.onnx",
        "node_conv_7",
        "\u2713 chosen",
    ):
        assert text in page
    assert "&quot;kl&quot;" not in page  # the trials are no JSON among the settings
    assert shipped(read_report(run)).file == "student.fp32.onnx"


def test_what_tuning_was_worth_is_shown(run: Path) -> None:
    tuning = {
        "sentence": "tuning +0.9 [0.4, 1.4] points over static int8",
        "mcnemar_p": 0.0004,
        "epochs": 2,
        "top1_float": 0.9,
        "top1_static": 0.88,
        "top1_validation": 0.893,
        "agreement": 0.999,
    }

    page = _page(run, tuning=tuning, row={"variant": None})

    for text in (
        "Tuning +0.9 [0.4, 1.4] points over static int8.",
        "2 further epochs",
        "p &lt; 0.001",
        "88.00",
        "99.9",
    ):
        assert text in page


def test_an_integer_file_is_said_to_be_one(run: Path) -> None:
    assert "Everything after the first layer runs in integer kernels." in _page(run, row={"island_causes": []})


def test_a_report_without_any_of_it_has_no_section(run: Path) -> None:
    assert 'id="int8"' not in _page(run)
