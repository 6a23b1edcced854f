"""What the student was chosen by, before any training."""

from __future__ import annotations

from compress.report.formats import is_number, significant
from compress.report.markup import NOT_MEASURED, Child, Html, bracket, count, el, milliseconds, section, size, table
from compress.report.read import Source
from compress.report.schema import LatencySummary, PlanSection
from compress.report.schema.plan import PlannedFile, PlannedNetwork

HEAD = ("Network", "MACs", "Parameters", "float32 p50", "int8 p50", "int8 against float32", "File", "Peak memory")


def choice(source: Source) -> Html | None:
    """The networks that `student.choose` tried, with random weights, and which it picked; the teachers for reference."""
    plan = source.report.plan or PlanSection()
    chosen = plan.choose
    if chosen is None or not chosen.sentence:
        return None
    device = plan.device or "local"
    place = plan.host.get("cpu") if device == "local" else device
    where = f" Timed with random weights on {place}." if place else " Timed with random weights."
    rows = [_row(row, chosen.chosen) for row in plan.networks]
    return section(
        "plan", "Before training", table("Networks tried before training", HEAD, rows), lead=chosen.sentence + where
    )


def _row(row: PlannedNetwork, chosen: str | None) -> list[Child]:
    shipped = row.shipped
    teacher = el("span", "teacher", class_="quiet") if row.role == "teacher" else None
    mark = el("span", "\u2713 chosen", class_="chip passed") if row.name == chosen and teacher is None else teacher
    speedup = row.int8_speedup
    ratio = (
        [f"{significant(speedup)}\u00d7", bracket(row.int8_speedup_ci95, 1, 2)] if is_number(speedup) else NOT_MEASURED
    )
    return [
        [row.name, " ", mark],
        count(row.macs),
        count(row.params),
        _p50(row.fp32),
        _p50(row.int8 or PlannedFile()),
        ratio,
        size(shipped.bytes),
        size(shipped.peak_memory_bytes),
    ]


def _p50(file: PlannedFile) -> Child:
    latency = file.latency_ms or LatencySummary()
    return [milliseconds(latency.p50), bracket(latency.p50_ci95, 1, 3)]
