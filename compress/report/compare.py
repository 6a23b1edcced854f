"""Finished runs side by side, as a plain table for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from compress.report.fit_times import fit_speedup
from compress.report.formats import is_number, significant
from compress.report.read import comparison_of, method_of, read_report, shipped, teacher_row
from compress.report.schema import ComparisonRow, LatencySummary, Report
from compress.report.schema.base import Interval, Number

NOTHING = "-"


def compare(paths: Sequence[Path]) -> str:
    """Return a plain table: one column a run, one line a number of the file that ships.

    `paths`: run folders or report.json files. Raises MissingError, StageError as `read_report`.
    """
    reports = [read_report(path) for path in paths]
    table = [[name, *(cell(report) for report in reports)] for name, cell in LINES]
    table = [row for row in table if any(cell != NOTHING for cell in row[1:])]
    widths = [max(len(row[column]) for row in table) for column in range(len(reports) + 1)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in table
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    if len({_tested_on(report) for report in reports}) > 1:
        lines.append("the runs were tested on different images: accuracies and drops do not compare")
    for report in reports:
        reasons = _doubts(report)
        if reasons:
            lines.append(f"{_plain(report.recipe)}: times are doubtful: {_plain('; '.join(reasons))}")
    return "\n".join(lines)


def _doubts(report: Report) -> list[str]:
    """Return why a run's times are doubtful."""
    timing = report.latency
    if timing is None:
        return []
    return [timing.unfit] if timing.unfit else timing.disturbances


def _plain(value: str | None) -> str:
    """Return a text for a terminal: nothing that moves the cursor."""
    return "".join(letter if letter.isprintable() else "?" for letter in value) if value is not None else NOTHING


def _number(value: Number | None, unit: str = "", scale: float = 1.0) -> str:
    return significant(value * scale) + unit if is_number(value) else NOTHING


def _pair(report: Report) -> ComparisonRow:
    return comparison_of(report, shipped(report).file, teacher_row(report).file)


def _latency(report: Report) -> LatencySummary:
    return shipped(report).latency_ms or LatencySummary()


def _percent(share: Number | None) -> str:
    return f"{100 * share:.2f} %" if is_number(share) else NOTHING


def _interval(value: Number | None, ends: Interval | None) -> str:
    if not is_number(value):
        return NOTHING
    return f"{value:+.2f}" + (f" [{ends[0]:.2f}, {ends[1]:.2f}]" if ends else "")


def _drop(report: Report) -> str:
    return _interval(_pair(report).top1_drop_points, _pair(report).top1_drop_ci95)


def _gain(report: Report) -> str:
    gain = report.distillation
    return _interval(gain.gain_points, gain.ci95) if gain else NOTHING


def _test_images(report: Report) -> str:
    data = report.data
    return _plain(f"{data.test_pictures:,} of {data.source}" if data and data.test_pictures is not None else None)


def _tested_on(report: Report) -> tuple[object, ...]:
    """Return what two runs have in common whose accuracies compare, as far as a report shows it."""
    data = report.data
    return data.source if data else None, data.test_pictures if data else None, tuple(report.classes)


def _machine(report: Report) -> str:
    cpu = report.environment.get("cpu")
    return _plain(None if cpu is None else str(cpu))


LINES: list[tuple[str, Callable[[Report], str]]] = [
    ("", lambda report: _plain(report.recipe)),
    ("started", lambda report: _plain(report.started)),
    ("status", lambda report: _plain(report.status if report.requirements else None)),
    ("test images", _test_images),
    ("machine", _machine),
    ("teacher", lambda report: _plain(report.teacher.model)),
    ("student", lambda report: _plain(report.student.model)),
    ("method", lambda report: _plain(method_of(report))),
    ("file", lambda report: _plain(shipped(report).file)),
    ("top-1", lambda report: _percent(shipped(report).top1)),
    ("teacher top-1", lambda report: _percent(teacher_row(report).top1)),
    ("drop, points", _drop),
    ("distillation, points", _gain),
    ("p50", lambda report: _number(_latency(report).p50, " ms")),
    ("p90", lambda report: _number(_latency(report).p90, " ms")),
    ("x teacher's speed", lambda report: _number(fit_speedup(report, shipped(report)))),
    ("size", lambda report: _number(shipped(report).bytes, " kB", 1e-3)),
    ("x smaller", lambda report: _number(_pair(report).size_ratio)),
    ("peak memory", lambda report: _number(shipped(report).peak_memory_bytes, " MB", 1e-6)),
    ("integer share", lambda report: _number(shipped(report).int8_mac_share, " %", 100)),
]
