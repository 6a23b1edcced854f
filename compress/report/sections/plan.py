"""What the student was chosen by, before any training."""

from __future__ import annotations

from dataclasses import dataclass

from compress.report import formats
from compress.report.formats import count, is_number, milliseconds, significant, size
from compress.report.read import Source
from compress.report.schema import LatencySummary
from compress.report.schema.plan import PlannedFile, PlannedNetwork
from compress.report.views import Cell, Table, cells

HEAD = ("Network", "MACs", "Parameters", "float32 p50", "int8 p50", "int8 against float32", "File", "Peak memory")


@dataclass(frozen=True)
class ChoiceView:
    """The networks that `student.choose` tried."""

    lead: str
    table: Table


def choice(source: Source) -> ChoiceView | None:
    """Build the table of the networks that were tried with random weights; None where none was chosen so."""
    plan = source.report.plan
    if plan is None or plan.choose is None or not plan.choose.sentence:
        return None
    device = plan.device or "local"
    place = plan.host.get("cpu") if device == "local" else device
    where = f" Timed with random weights on {place}." if place else " Timed with random weights."
    rows = [_row(row, plan.choose.chosen) for row in plan.networks]
    return ChoiceView(plan.choose.sentence + where, Table("Networks tried before training", cells(*HEAD), rows))


def _row(row: PlannedNetwork, chosen: str | None) -> list[Cell]:
    teacher = row.role == "teacher"
    speedup = row.int8_speedup
    ratio = f"{significant(speedup)}\u00d7" if is_number(speedup) else None
    return [
        Cell(
            row.name,
            chip="\u2713 chosen" if row.name == chosen and not teacher else "",
            quiet="teacher" if teacher else "",
        ),
        Cell(count(row.macs)),
        Cell(count(row.params)),
        _p50(row.fp32),
        _p50(row.int8),
        Cell(ratio, formats.interval(row.int8_speedup_ci95, 1, 2) if ratio else ""),
        Cell(size(row.shipped.bytes)),
        Cell(size(row.shipped.peak_memory_bytes)),
    ]


def _p50(file: PlannedFile | None) -> Cell:
    latency = (file.latency_ms if file else None) or LatencySummary()
    return Cell(milliseconds(latency.p50), formats.interval(latency.p50_ci95, 1, 3))
