"""What the student was chosen by, before any training."""

from __future__ import annotations

from typing import Any

from compress.report.markup import (
    NOT_MEASURED,
    Child,
    Html,
    bracket,
    count,
    el,
    interval_of,
    is_number,
    milliseconds,
    section,
    significant,
    size,
    table,
)
from compress.report.read import Source

HEAD = ("Network", "MACs", "Parameters", "float32 p50", "int8 p50", "int8 against float32", "File", "Peak memory")


def choice(source: Source) -> Html | None:
    """The networks that `student.choose` tried, with random weights, and which it picked; the teachers for reference."""
    plan = source.report.get("plan") or {}
    chosen = plan.get("choose") or {}
    if not chosen.get("sentence"):
        return None
    device = plan.get("device") or "local"
    place = (plan.get("host") or {}).get("cpu") if device == "local" else device
    where = f" Timed with random weights on {place}." if place else " Timed with random weights."
    rows = [_row(row, chosen.get("chosen")) for row in plan.get("networks") or []]
    return section(
        "plan", "Before training", table("Networks tried before training", HEAD, rows), lead=chosen["sentence"] + where
    )


def _row(row: dict[str, Any], chosen: str | None) -> list[Child]:
    shipped = row[row["ships"]]
    teacher = el("span", "teacher", class_="quiet") if row.get("role") == "teacher" else None
    mark = el("span", "\u2713 chosen", class_="chip passed") if row["name"] == chosen and teacher is None else teacher
    speedup = row.get("int8_speedup")
    ratio = (
        [f"{significant(speedup)}\u00d7", bracket(interval_of(row.get("int8_speedup_ci95")), 1, 2)]
        if is_number(speedup)
        else NOT_MEASURED
    )
    return [
        [row["name"], " ", mark],
        count(row.get("macs")),
        count(row.get("params")),
        _p50(row["fp32"]),
        _p50(row.get("int8") or {}),
        ratio,
        size(shipped.get("bytes")),
        size(shipped.get("peak_memory_bytes")),
    ]


def _p50(file: dict[str, Any]) -> Child:
    latency = file.get("latency_ms") or {}
    return [milliseconds(latency.get("p50")), bracket(interval_of(latency.get("p50_ci95")), 1, 3)]
