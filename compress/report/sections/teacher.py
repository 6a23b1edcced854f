"""The candidates for the teacher, and why one was chosen."""

from __future__ import annotations

from dataclasses import dataclass

from compress.report.formats import count, duration, percent
from compress.report.read import Source
from compress.report.schema import CandidateRow
from compress.report.views import Cell, Table, cells

PROXY_HEAD = ("Rank", "Student's top-1, proxy", "Rank by proxy", "Behind the best, points")


@dataclass(frozen=True)
class TeacherView:
    """The table of candidates; `lead` says why one was chosen."""

    lead: str
    table: Table


def teacher(source: Source) -> TeacherView | None:
    """Build the table of all candidates; None without any."""
    section = source.report.teacher
    if not section.candidates:
        return None
    proxy = any(row.proxy_top1_validation is not None for row in section.candidates)
    ranking = PROXY_HEAD if proxy else ()
    head = cells("Candidate", "Top-1, validation", *ranking, "Parameters", "MACs", "Epochs", "Time", "From")
    rows = [_row(row, proxy) for row in section.candidates]
    return TeacherView(section.reason or "", Table("Teacher candidates", head, rows))


def _row(row: CandidateRow, proxy: bool) -> list[Cell]:
    ranking = [
        Cell(count(row.rank)),
        Cell(percent(row.proxy_top1_validation, 2)),
        Cell(count(row.proxy_rank)),
        Cell(_behind(row)),
    ]
    return [
        Cell(row.model or "", chip="\u2713 chosen" if row.chosen else ""),
        Cell(percent(row.top1_validation, 2)),
        *(ranking if proxy else ()),
        Cell(count(row.params)),
        Cell(count(row.macs)),
        Cell(count(row.epochs)),
        Cell(duration(row.seconds)),
        Cell(" on ".join(part for part in (row.origin, row.gpu) if part) or None),
    ]


def _behind(row: CandidateRow) -> str | None:
    """Return how far a candidate's student is behind the best one, and whether that is significant."""
    points, ends = row.proxy_behind_points, row.proxy_behind_ci95
    if points is None or ends is None:
        return None
    return f"{points:.2f} [{ends[0]:.2f}, {ends[1]:.2f}]{'' if ends[0] > 0 else ', no difference shown'}"
