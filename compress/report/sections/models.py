"""The table of every measured number, one column a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from compress.report.markup import (
    NOT_MEASURED,
    Child,
    Html,
    bracket,
    chance,
    count,
    el,
    interval_of,
    is_number,
    milliseconds,
    percent,
    section,
    signed,
    significant,
    size,
    table,
)
from compress.report.read import Source, comparison_of, measured_rows, model_label, shipped, teacher_row


def models(source: Source) -> Html:
    """The table of all measured files: one column each, so that it fits a phone sideways."""
    report = source.report
    rows = measured_rows(report)
    ship = shipped(report)
    head: list[Child] = [""] + [[model_label(row), _under(row, ship)] for row in rows]
    few = (
        0 < len(report.get("classes") or []) <= 5
    )  # the first five answers of so few classes always hold the right one
    lines = [[name, *(cell(row, report) for row in rows)] for name, cell in CELLS if not (few and name == "Top-5")]
    lines = [line for line in lines if any(cell is not NOT_MEASURED for cell in line[1:])]
    kinds = ["", *("ship" if row is ship else "" for row in rows)]
    images = next((row["images"] for row in rows if row.get("images")), None)
    timing: dict[str, Any] = next((row["latency_ms"] for row in rows if row.get("latency_ms")), {})
    parts = [f"all on the same {images:,} test pictures" if images else None, _conditions(timing)]
    lead = (
        "Every file measured in one runtime"
        + "".join(f"; {part}" for part in parts if part)
        + ". Small print: 95 % intervals."
    )
    return section("models", "Models", table("Measured models", head, lines, kinds, stacked=True), lead=lead)


def _under(row: dict[str, Any], ship: dict[str, Any]) -> list[Html]:
    """What stands under a model's name: whether it ships, and for which processors it is."""
    return [
        el("small", text)
        for text in ("ships" if row is ship else None, row.get("target"), "not timed here" if row.get("note") else None)
        if text
    ]


def _conditions(timing: Mapping[str, Any]) -> str | None:
    threads, batch, runs = timing.get("threads"), timing.get("batch"), timing.get("runs")
    cores = f"{threads} {'thread' if threads == 1 else 'threads'}" if threads else ""
    parts = [f"batch {batch}" if batch else "", cores, f"{runs} timed runs" if runs else ""]
    return "latency at " + ", ".join(part for part in parts if part) if any(parts) else None


def _top1(row: dict[str, Any], report: dict[str, Any]) -> Child:
    return (
        [percent(row["top1"], 2), bracket(interval_of(row.get("top1_ci95")), 100)]
        if is_number(row.get("top1"))
        else NOT_MEASURED
    )


def _drop(against: Callable[[dict[str, Any]], Any]) -> Any:
    """Points that the model is below another on the same pictures."""

    def cell(row: dict[str, Any], report: dict[str, Any]) -> Child:
        pair = comparison_of(report, row.get("file"), against(report))
        drop = pair.get("top1_drop_points")
        return (
            [signed(drop, 2).lstrip("+"), bracket(interval_of(pair.get("top1_drop_ci95")), 1, 2)]
            if is_number(drop)
            else NOT_MEASURED
        )

    return cell


def _flips(against: Callable[[dict[str, Any]], Any]) -> Any:
    """Pictures that the model lost and gained against another on the same ones, and McNemar's exact p."""

    def cell(row: dict[str, Any], report: dict[str, Any]) -> Child:
        pair = comparison_of(report, row.get("file"), against(report))
        if not is_number(pair.get("lost")) or not is_number(pair.get("mcnemar_p")):
            return NOT_MEASURED
        return [f"{pair['lost']} / {pair.get('gained')}", el("small", f"p {chance(pair['mcnemar_p'])}")]

    return cell


def _teacher_file(report: dict[str, Any]) -> Any:
    return teacher_row(report).get("file")


def _float_file(report: dict[str, Any]) -> Any:
    return next(
        (
            row.get("file")
            for row in report["models"]
            if row.get("role") == "student" and row.get("precision") == "fp32"
        ),
        None,
    )


def _p50(key: str) -> Any:
    def cell(row: dict[str, Any], report: dict[str, Any]) -> Child:
        latency = row.get(key) or {}
        return (
            [milliseconds(latency["p50"]), bracket(interval_of(latency.get("p50_ci95")), 1, 3)]
            if is_number(latency.get("p50"))
            else NOT_MEASURED
        )

    return cell


def _pair(key: str, unit: str) -> Any:
    def cell(row: dict[str, Any], report: dict[str, Any]) -> Child:
        pair = comparison_of(report, row.get("file"), _teacher_file(report))
        if not is_number(pair.get(key)):
            return NOT_MEASURED
        return [
            significant(pair[key]) + unit,
            bracket(interval_of(pair.get("speedup_ci95")), 1, 2) if key == "speedup_p50" else None,
        ]

    return cell


def _own(key: str, show: Any) -> Any:
    return lambda row, report: show(row.get(key))


def _network(key: str) -> Any:
    """A number of the network, not of the file: the teacher's, the student's; the baseline is the same network as the student."""
    return lambda row, report: count(
        (report["teacher"] if row.get("role") == "teacher" else report["student"]).get(key)
    )


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
    ("Latency p90", lambda row, report: milliseconds((row.get("latency_ms") or {}).get("p90"))),
    ("Latency p99", lambda row, report: milliseconds((row.get("latency_ms") or {}).get("p99"))),
    ("Faster than teacher", _pair("speedup_p50", "\u00d7")),
    ("Photo to answer, p50", _p50("photo_latency_ms")),
    ("First run", _own("first_run_ms", milliseconds)),
    ("Load", _own("load_ms", milliseconds)),
    ("Peak memory", _own("peak_memory_bytes", size)),
    ("Integer share", _own("int8_mac_share", percent)),
    ("Largest logit difference from torch", _own("max_abs_diff_from_torch", difference)),
]
