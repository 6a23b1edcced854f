"""The table of every measured number, one column a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from compress.core.plural import plural
from compress.report import formats
from compress.report.formats import chance, count, is_number, milliseconds, percent, signed, significant, size
from compress.report.read import Source, comparison_of, float_row, measured_rows, model_label, shipped, teacher_row
from compress.report.schema import LatencySummary, ModelRow, Report
from compress.report.schema.base import Interval, Number
from compress.report.views import Cell, Table

NOT_MEASURED = Cell(None)
# Among so few classes the first five answers always hold the right one.
CLASSES_WITHOUT_TOP5 = 5

Measure = Callable[[ModelRow, Report], Cell]
Reference = Callable[[Report], ModelRow]


@dataclass(frozen=True)
class ModelsView:
    """The table of all measured files."""

    lead: str
    table: Table


def models(source: Source) -> ModelsView:
    """Build the table: one column a file, so that it fits a phone sideways."""
    report = source.report
    rows, ship = measured_rows(report), shipped(report)
    few = 0 < len(report.classes) <= CLASSES_WITHOUT_TOP5
    lines = [
        [Cell(name), *(measure(row, report) for row in rows)]
        for name, measure in MEASURES
        if not (few and name == "Top-5")
    ]
    images = next((row.images for row in rows if row.images), None)
    timing = next((row.latency_ms for row in rows if row.latency_ms), LatencySummary())
    parts = [f"all on the same {images:,} test images" if images else None, _conditions(timing)]
    lead = "Every file was measured in one runtime" + "".join(f"; {part}" for part in parts if part)
    table = Table(
        "Measured models",
        [Cell(), *(Cell(model_label(row), small=_under(row, ship)) for row in rows)],
        [line for line in lines if any(cell != NOT_MEASURED for cell in line[1:])],
        ["", *("ship" if row is ship else "" for row in rows)],
        stacked=True,
    )
    return ModelsView(f"{lead}. Small print: 95 % intervals.", table)


def _under(row: ModelRow, ship: ModelRow) -> tuple[str, ...]:
    """Return what stands under a file's name: whether it ships, and for which processors it is."""
    texts = ("ships" if row is ship else None, row.target, "not timed here" if row.note else None)
    return tuple(text for text in texts if text)


def _conditions(timing: LatencySummary) -> str | None:
    parts = [
        f"batch {timing.batch}" if timing.batch else "",
        plural(timing.threads, "thread") if timing.threads else "",
        f"{timing.runs} timed runs" if timing.runs else "",
    ]
    return "latency at " + ", ".join(part for part in parts if part) if any(parts) else None


def _top1(row: ModelRow, report: Report) -> Cell:
    return Cell(percent(row.top1, 2), formats.interval(row.top1_ci95, 100)) if is_number(row.top1) else NOT_MEASURED


def _balanced(row: ModelRow, report: Report) -> Cell:
    return _with_interval(row.balanced_accuracy, row.balanced_accuracy_ci95)


def _macro_f1(row: ModelRow, report: Report) -> Cell:
    return _with_interval(row.macro_f1, row.macro_f1_ci95)


def _with_interval(share: Number | None, ends: Interval | None) -> Cell:
    return Cell(percent(share, 1), formats.interval(ends, 100)) if is_number(share) else NOT_MEASURED


def _drop(against: Reference) -> Measure:
    """Return the measure of the points that a file is below another on the same images."""

    def measure(row: ModelRow, report: Report) -> Cell:
        pair = comparison_of(report, row.file, against(report).file)
        drop = pair.top1_drop_points
        if not is_number(drop):
            return NOT_MEASURED
        return Cell(signed(drop, 2).lstrip("+"), formats.interval(pair.top1_drop_ci95, 1, 2))

    return measure


def _flips(against: Reference) -> Measure:
    """Return the measure of the images that a file lost and gained against another, and the p of its drop."""

    def measure(row: ModelRow, report: Report) -> Cell:
        pair = comparison_of(report, row.file, against(report).file)
        if not is_number(pair.lost) or not is_number(pair.mcnemar_p):
            return NOT_MEASURED
        p = f"p {chance(pair.mcnemar_p)}"
        if pair.groups is not None and is_number(pair.p):
            p = f"p {chance(pair.p)} ({plural(pair.groups, 'group')})"
        return Cell(f"{pair.lost} / {pair.gained}", small=(p,))

    return measure


def _p50(latency: LatencySummary | None) -> Cell:
    if latency is None or not is_number(latency.p50):
        return NOT_MEASURED
    return Cell(milliseconds(latency.p50), formats.interval(latency.p50_ci95, 1, 3))


def _speedup(row: ModelRow, report: Report) -> Cell:
    pair = comparison_of(report, row.file, teacher_row(report).file)
    if not is_number(pair.speedup_p50):
        return NOT_MEASURED
    return Cell(f"{significant(pair.speedup_p50)}\u00d7", formats.interval(pair.speedup_ci95, 1, 2))


def _size_ratio(row: ModelRow, report: Report) -> Cell:
    ratio = comparison_of(report, row.file, teacher_row(report).file).size_ratio
    return Cell(f"{significant(ratio)}\u00d7") if is_number(ratio) else NOT_MEASURED


def _own(show: Callable[[Any], str | None], value: Callable[[ModelRow], Any]) -> Measure:
    return lambda row, report: Cell(show(value(row)))


def _params(row: ModelRow, report: Report) -> Cell:
    """Return the number of parameters; the baseline is the same network as the student."""
    return Cell(count((report.teacher if row.role == "teacher" else report.student).params))


def _macs(row: ModelRow, report: Report) -> Cell:
    return Cell(count((report.teacher if row.role == "teacher" else report.student).macs))


def difference(value: Number | None) -> Cell:
    """Return a small number as mantissa and power of ten."""
    if not is_number(value):
        return NOT_MEASURED
    mantissa, exponent = f"{value:.1e}".split("e")
    return Cell(mantissa, power=int(exponent)) if value else Cell("0")


MEASURES: list[tuple[str, Measure]] = [
    ("Top-1", _top1),
    ("Drop against teacher, points", _drop(teacher_row)),
    ("Lost / gained against teacher", _flips(teacher_row)),
    ("Drop against float student, points", _drop(float_row)),
    ("Lost / gained against float student", _flips(float_row)),
    ("Top-5", _own(percent, lambda row: row.top5)),
    ("Balanced accuracy", _balanced),
    ("Macro-F1", _macro_f1),
    ("Agrees with teacher", _own(percent, lambda row: row.agreement_with_teacher)),
    ("File", _own(size, lambda row: row.bytes)),
    ("Smaller than teacher", _size_ratio),
    ("Parameters", _params),
    ("MACs", _macs),
    ("Latency p50", lambda row, report: _p50(row.latency_ms)),
    ("Latency p90", _own(milliseconds, lambda row: row.latency_ms.p90 if row.latency_ms else None)),
    ("Latency p99", _own(milliseconds, lambda row: row.latency_ms.p99 if row.latency_ms else None)),
    ("Faster than teacher", _speedup),
    ("Photo to answer, p50", lambda row, report: _p50(row.photo_latency_ms)),
    ("First run", _own(milliseconds, lambda row: row.first_run_ms)),
    ("Load", _own(milliseconds, lambda row: row.load_ms)),
    ("Peak memory", _own(size, lambda row: row.peak_memory_bytes)),
    ("Integer share", _own(percent, lambda row: row.int8_mac_share)),
    ("Largest logit difference from torch", lambda row, report: difference(row.max_abs_diff_from_torch)),
]
