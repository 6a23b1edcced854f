"""What a run prints at its end."""

from __future__ import annotations

from pathlib import Path

from compress.report.console_summary import summary_lines
from compress.report.read import read_report
from compress.report.schema import Report
from tests.support.report_example import build


def test_the_summary_shows_the_models_and_names_the_line_of_a_missed_limit() -> None:
    models = [
        {
            "role": "teacher",
            "file": "teacher.onnx",
            "top1": 0.9,
            "top1_ci95": [0.89, 0.91],
            "bytes": 5000,
            "latency_ms": {"p50": 1.5},
        },
        {
            "role": "student",
            "file": "student.int8.onnx",
            "top1": 0.88,
            "top1_ci95": None,
            "bytes": 1000,
            "latency_ms": {"p50": None},
        },
    ]
    pair = {"model": "student.int8.onnx", "against": "teacher.onnx", "top1_drop_points": 2.0, "speedup_p50": None}
    limit = {
        "name": "max_top1_drop",
        "limit": 1.0,
        "value": 2.0,
        "verdict": "failed",
        "where": "a.yaml:9:3",
        "sentence": "Lower.",
    }
    known = {"status": "failed", "models": models, "comparisons": [pair], "requirements": [limit]}
    report = Report.model_validate(known)
    lines = [line for line, _ in summary_lines(report, Path("runs/x"))]
    assert lines[2].split() == [
        "teacher.onnx",
        "90.00",
        "%",
        "89.00",
        "to",
        "91.00",
        "-",
        "1.500",
        "ms",
        "-",
        "5,000",
        "bytes",
    ]
    assert lines[3].split() == ["student.int8.onnx", "88.00", "%", "-", "+2.00", "points", "-", "-", "1,000", "bytes"]
    assert [line for line in lines[4:] if line] == [
        "failed     max_top1_drop: Lower. (a.yaml:9:3)",
        "failed: 0 of 1 requirements met; report: runs/x/report.html",
    ]


def test_the_summary_names_the_classes_with_the_lowest_recall(tmp_path: Path) -> None:
    build(tmp_path, n=400)
    report = read_report(tmp_path)
    lines = [line for line, _ in summary_lines(report, tmp_path)]
    (metrics,) = [line for line in lines if line.startswith("student.int8.onnx: balanced accuracy ")]
    assert " %, macro-F1 " in metrics.replace("]", " %")
    (worst,) = [line for line in lines if line.startswith("lowest recall: ")]
    rows = sorted(report.per_class, key=lambda row: row.student or 0.0)
    assert worst.startswith(f"lowest recall: {rows[0].name} {rows[0].right} of 40 (") and worst.count(" of 40 (") == 3


def test_a_report_of_an_earlier_version_has_no_such_line(tmp_path: Path) -> None:
    report = read_report(Path(__file__).parent / "fixtures" / "mobilenet-0.1.0")
    assert not any("lowest recall" in line for line, _ in summary_lines(report, tmp_path))
