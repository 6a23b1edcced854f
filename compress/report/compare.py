"""Several runs side by side, as plain text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from compress.report.markup import Html, interval_of, is_number, significant
from compress.report.read import comparison_of, method_of, read_report, shipped, speedup, teacher_row

NOTHING = "-"


def compare(paths: Sequence[Path]) -> str:
    """A plain table: one column a run, one line a number of the model that ships. `paths`: run folders or report.json files.

    Raises: MissingError, StageError for what is no report.
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
        lines.append("the runs were tested on different pictures: accuracies and drops do not compare")
    for report in reports:
        timing = report.get("latency") or {}
        said = [timing["unfit"]] if timing.get("unfit") else timing.get("disturbances") or []
        if said:
            lines.append(f"{_plain(report['recipe'])}: times are doubtful: {_plain('; '.join(map(str, said)))}")
    return "\n".join(lines)


def _plain(value: Any) -> str:
    """A value for a terminal: nothing that moves the cursor."""
    text = NOTHING if value is None or isinstance(value, Html) else str(value)
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _number(value: Any, unit: str = "", scale: float = 1.0) -> str:
    return significant(value * scale) + unit if is_number(value) else NOTHING


def _of(
    find: Callable[[dict[str, Any]], dict[str, Any]], key: str, unit: str = "", scale: float = 1.0
) -> Callable[[dict[str, Any]], str]:
    return lambda report: _number(find(report).get(key), unit, scale)


def _pair(report: dict[str, Any]) -> dict[str, Any]:
    return comparison_of(report, shipped(report).get("file"), teacher_row(report).get("file"))


def _latency(report: dict[str, Any]) -> dict[str, Any]:
    return shipped(report).get("latency_ms") or {}


def _percent(row: dict[str, Any]) -> str:
    return f"{100 * row['top1']:.2f} %" if is_number(row.get("top1")) else NOTHING


def _interval(value: Any, interval: Any) -> str:
    ends = interval_of(interval)
    if not is_number(value):
        return NOTHING
    return f"{value:+.2f}" + (f" [{ends[0]:.2f}, {ends[1]:.2f}]" if ends else "")


def _drop(report: dict[str, Any]) -> str:
    return _interval(_pair(report).get("top1_drop_points"), _pair(report).get("top1_drop_ci95"))


def _gain(report: dict[str, Any]) -> str:
    gain = report.get("distillation") or {}
    return _interval(gain.get("gain_points"), gain.get("ci95"))


def _pictures(report: dict[str, Any]) -> str:
    data = report.get("data") or {}
    return _plain(f"{data['test_pictures']:,} of {data['source']}" if is_number(data.get("test_pictures")) else None)


def _tested_on(report: dict[str, Any]) -> tuple[Any, ...]:
    """What two runs have in common whose accuracies compare, as far as a report tells."""
    data = report.get("data") or {}
    return data.get("source"), data.get("test_pictures"), tuple(report.get("classes") or ())


LINES: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
    ("", lambda report: _plain(report["recipe"])),
    ("started", lambda report: _plain(report.get("started"))),
    ("status", lambda report: _plain(report["status"] if report["requirements"] else None)),
    ("test pictures", _pictures),
    ("machine", lambda report: _plain((report.get("environment") or {}).get("cpu"))),
    ("teacher", lambda report: _plain(report["teacher"].get("model"))),
    ("student", lambda report: _plain(report["student"].get("model"))),
    ("method", lambda report: _plain(method_of(report))),
    ("file", lambda report: _plain(shipped(report).get("file"))),
    ("top-1", lambda report: _percent(shipped(report))),
    ("teacher top-1", lambda report: _percent(teacher_row(report))),
    ("drop, points", _drop),
    ("distillation, points", _gain),
    ("p50", _of(_latency, "p50", " ms")),
    ("p90", _of(_latency, "p90", " ms")),
    ("x teacher's speed", lambda report: _number(speedup(report))),
    ("size", _of(shipped, "bytes", " kB", 1e-3)),
    ("x smaller", _of(_pair, "size_ratio")),
    ("peak memory", _of(shipped, "peak_memory_bytes", " MB", 1e-6)),
    ("integer share", _of(shipped, "int8_mac_share", " %", 100)),
]
