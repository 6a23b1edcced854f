"""A measurement that is called unfit is no headline: a fit one of the same bytes is, else nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compress.report.console_summary import summary_lines
from compress.report.fit_times import fit_latency, fit_speedup
from compress.report.read import shipped
from compress.report.schema import Report

UNFIT = "other processes interrupted teacher.onnx in 9 of 10 runs, too many to leave them out"
AGAIN = {
    "target": "local",
    "file": "student.int8.onnx",
    "sha256": "b",
    "latency_ms": {"p50": 0.2},
    "speedup_over": {"teacher.onnx": [1.9, 1.8, 2.0]},
}


def report(timing: dict[str, Any], device: list[dict[str, Any]]) -> Report:
    models = [
        {"role": "teacher", "file": "teacher.onnx", "sha256": "a", "latency_ms": {"p50": 7.5}},
        {
            "role": "student",
            "precision": "int8",
            "file": "student.int8.onnx",
            "sha256": "b",
            "latency_ms": {"p50": 0.7},
        },
    ]
    pair = {"model": "student.int8.onnx", "against": "teacher.onnx", "speedup_p50": 10.8}
    known = {"models": models, "comparisons": [pair], "latency": {"rounds": 20, **timing}, "device": device}
    return Report.model_validate({**known, "environment": {"cpu": "AMD EPYC", "isa": "x86-vnni"}})


@pytest.mark.parametrize(
    ("timing", "device", "p50", "speed"),
    [
        ({}, [], 0.7, 10.8),
        ({"unfit": UNFIT}, [], None, None),
        ({"unfit": UNFIT, "cpu_ratios": UNFIT}, [], None, 10.8),
        ({"unfit": UNFIT}, [AGAIN], 0.2, 1.9),
        ({"unfit": UNFIT}, [{**AGAIN, "conditions": {"unfit": UNFIT}}], None, None),
        ({"unfit": UNFIT}, [{**AGAIN, "sha256": "c"}], None, None),
        ({"unfit": UNFIT}, [{**AGAIN, "target": "ssh://pi"}], None, None),
    ],
)
def test_only_fit_numbers_are_headlines(
    timing: dict[str, Any], device: list[dict[str, Any]], p50: float | None, speed: float | None
) -> None:
    found = report(timing, device)
    ship = shipped(found)
    assert (fit_latency(found, ship), fit_speedup(found, ship)) == (p50, speed)
    lines = [line for line, _ in summary_lines(found, Path("x"))]
    row = next(line for line in lines if line.startswith("student.int8.onnx"))
    assert (f"{p50:.3f} ms" in row if p50 else " ms" not in row) and (
        f"{speed:.2f}x" in row if speed else "10.80x" not in row
    )
    assert ("times are of this AMD EPYC with VNNI, not of another board" in lines) is (p50 is not None)
    assert any(UNFIT in line for line in lines) is bool(timing)
