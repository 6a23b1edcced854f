"""The table of every measured number, one column a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from compress.report.formats import chance, is_number, signed, significant
from compress.report.markup import (
    NOT_MEASURED,
    Child,
    Html,
    bracket,
    count,
    el,
    milliseconds,
    percent,
    section,
    size,
    table,
)
from compress.report.read import Source, comparison_of, float_row, measured_rows, model_label, shipped, teacher_row
from compress.report.schema import LatencySummary, ModelRow, Report


def models(source: Source) -> Html:
    """The table of all measured files: one column each, so that it fits a phone sideways."""
    report = source.report
    rows = measured_rows(report)
    ship = shipped(report)
    head: list[Child] = [""] + [[model_label(row), _under(row, ship)] for row in rows]
    few = 0 < len(report.classes) <= 5  # the first five answers of so few classes always hold the right one
    lines = [[name, *(cell(row, report) for row in rows)] for name, cell in CELLS if not (few and name == "Top-5")]
    lines = [line for line in lines if any(cell is not NOT_MEASURED for cell in line[1:])]
    kinds = ["", *("ship" if row is ship else "" for row in rows)]
    images = next((row.images for row in rows if row.images), None)
    timing = next((row.latency_ms for row in rows if row.latency_ms), LatencySummary())
    parts = [f"all on the same {images:,} test pictures" if images else None, _conditions(timing)]
    lead = (
        "Every file measured in one runtime"
        + "".join(f"; {part}" for part in parts if part)
        + ". Small print: 95 % intervals."
    )
    return section("models", "Models", table("Measured models", head, lines, kinds, stacked=True), lead=lead)


def _under(row: ModelRow, ship: ModelRow) -> list[Html]:
    """What stands under a model's name: whether it ships, and for which processors it is."""
    return [
        el("small", text)
        for text in ("ships" if row is ship else None, row.target, "not timed here" if row.note else None)
        if text
    ]


def _conditions(timing: LatencySummary) -> str | None:
    threads, batch, runs = timing.threads, timing.batch, timing.runs
    cores = f"{threads} {'thread' if threads == 1 else 'threads'}" if threads else ""
    parts = [f"batch {batch}" if batch else "", cores, f"{runs} timed runs" if runs else ""]
    return "latency at " + ", ".join(part for part in parts if part) if any(parts) else None


def _top1(row: ModelRow, report: Report) -> Child:
    return [percent(row.top1, 2), bracket(row.top1_ci95, 100)] if is_number(row.top1) else NOT_MEASURED


def _drop(against: Callable[[Report], str | None]) -> Any:
    """Points that the model is below another on the same pictures."""

    def cell(row: ModelRow, report: Report) -> Child:
        pair = comparison_of(report, row.file, against(report))
        drop = pair.top1_drop_points
        return [signed(drop, 2).lstrip("+"), bracket(pair.top1_drop_ci95, 1, 2)] if is_number(drop) else NOT_MEASURED

    return cell


def _flips(against: Callable[[Report], str | None]) -> Any:
    """Pictures that the model lost and gained against another on the same ones, and McNemar's exact p."""

    def cell(row: ModelRow, report: Report) -> Child:
        pair = comparison_of(report, row.file, against(report))
        if not is_number(pair.lost) or not is_number(pair.mcnemar_p):
            return NOT_MEASURED
        return [f"{pair.lost} / {pair.gained}", el("small", f"p {chance(pair.mcnemar_p)}")]

    return cell


def _teacher_file(report: Report) -> str | None:
    return teacher_row(report).file


def _float_file(report: Report) -> str | None:
    return float_row(report).file


def _p50(key: str) -> Any:
    def cell(row: ModelRow, report: Report) -> Child:
        latency = (row.latency_ms if key == "latency_ms" else row.photo_latency_ms) or LatencySummary()
        return [milliseconds(latency.p50), bracket(latency.p50_ci95, 1, 3)] if is_number(latency.p50) else NOT_MEASURED

    return cell


def _pair(key: str, unit: str) -> Any:
    def cell(row: ModelRow, report: Report) -> Child:
        pair = comparison_of(report, row.file, _teacher_file(report))
        value = pair.speedup_p50 if key == "speedup_p50" else pair.size_ratio
        if not is_number(value):
            return NOT_MEASURED
        return [
            significant(value) + unit,
            bracket(pair.speedup_ci95, 1, 2) if key == "speedup_p50" else None,
        ]

    return cell


def _own(key: str, show: Any) -> Any:
    return lambda row, report: show(getattr(row, key))


def _network(key: str) -> Any:
    """A number of the network, not of the file: the teacher's, the student's; the baseline is the same network as the student."""
    return lambda row, report: count(getattr(report.teacher if row.role == "teacher" else report.student, key))


def difference(value: Any) -> Child:
    """A small number as mantissa and power of ten."""
    if not is_number(value):
        return NOT_MEASURED
    mantissa, exponent = f"{value:.1e}".split("e")
    return [mantissa, " \u00d7 10", el("sup", int(exponent))] if value else "0"


CELLS: list[tuple[Child, Any]] = [
    ("Top-1", _top1),
    ("Drop against teacher, points", _drop(_teacher_file)),
    ("Lost / gained against teacher", _flips(_teacher_file)),
    ("Drop against float student, points", _drop(_float_file)),
    ("Lost / gained against float student", _flips(_float_file)),
    ("Top-5", _own("top5", percent)),
    ("Agrees with teacher", _own("agreement_with_teacher", percent)),
    ("File", _own("bytes", size)),
    ("Smaller than teacher", _pair("size_ratio", "\u00d7")),
    ("Parameters", _network("params")),
    ("MACs", _network("macs")),
    ("Latency p50", _p50("latency_ms")),
    ("Latency p90", lambda row, report: milliseconds((row.latency_ms or LatencySummary()).p90)),
    ("Latency p99", lambda row, report: milliseconds((row.latency_ms or LatencySummary()).p99)),
    ("Faster than teacher", _pair("speedup_p50", "\u00d7")),
    ("Photo to answer, p50", _p50("photo_latency_ms")),
    ("First run", _own("first_run_ms", milliseconds)),
    ("Load", _own("load_ms", milliseconds)),
    ("Peak memory", _own("peak_memory_bytes", size)),
    ("Integer share", _own("int8_mac_share", percent)),
    ("Largest logit difference from torch", _own("max_abs_diff_from_torch", difference)),
]
