"""The recall of each class, and how it changed from the teacher to the shipped student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compress.core.plural import plural
from compress.report import formats
from compress.report.formats import is_number, percent, signed
from compress.report.read import Source, shipped
from compress.report.schema import ClassRow, Report
from compress.report.views import Cell, Table, cells
from compress.verdict.intervals import wilson

MOST_CLASSES = 20
# Of more classes the worst and the best are shown, the rest is folded away.
WORST, BEST = 12, 4
RECALL_HEAD = ("Class", "Images", "Right", "Recall", "F1", "Teacher's recall")
ALIKE = "Metrics that count every class alike: "


@dataclass(frozen=True)
class ClassView:
    """One class. `width`: of its bar, in percent of the whole swing."""

    name: str
    title: str
    pair: str
    direction: str
    width: float
    change: str


@dataclass(frozen=True)
class ClassesView:
    """The classes that are shown at once, and those that are folded away.

    `recall` lists the worst classes, `others` the rest, if there is one.
    """

    shown: Sequence[ClassView]
    folded: Sequence[ClassView]
    metrics: str
    recall: Table
    others: Table | None


def classes(source: Source) -> ClassesView | None:
    """Build recalls and changes, the worst first; None where they are not known."""
    rows = [row for row in source.per_class if is_number(row.teacher) and is_number(row.student)]
    if not rows:
        return None
    lines = [_recall(row) for row in sorted(rows, key=lambda row: row.student or 0.0)]
    shown_lines, others = (lines, []) if len(lines) <= MOST_CLASSES else (lines[:WORST], lines[WORST:])
    metrics = _metrics(source.report)
    recall = Table("Recall of each class, the worst first", cells(*RECALL_HEAD), shown_lines)
    rest = Table("Recall of the other classes", cells(*RECALL_HEAD), others) if others else None
    rows.sort(key=_change)
    widest = max(max(abs(_change(row)) for row in rows), 1.0)
    views = [_view(row, widest) for row in rows]
    if len(views) <= MOST_CLASSES:
        return ClassesView(views, [], metrics, recall, rest)
    return ClassesView(views[:WORST] + views[-BEST:], views[WORST:-BEST], metrics, recall, rest)


def _metrics(report: Report) -> str:
    """Return balanced accuracy and macro-F1 of the file that ships; nothing in reports of earlier versions."""
    row = shipped(report)
    parts = [
        f"{name} {percent(value)} {formats.interval(ends, 100)}".rstrip()
        for name, value, ends in (
            ("balanced accuracy", row.balanced_accuracy, row.balanced_accuracy_ci95),
            ("macro-F1", row.macro_f1, row.macro_f1_ci95),
        )
        if is_number(value)
    ]
    return f"{ALIKE}{', '.join(parts)}." if parts else ""


def _recall(row: ClassRow) -> list[Cell]:
    ends, right = row.student_ci95, row.right
    if row.n and right is None:  # a report of an earlier version
        right = round((row.student or 0.0) * row.n)
    if row.n and ends is None and right is not None:
        ends = wilson(right, row.n)
    return [
        Cell(str(row.name)),
        Cell(str(row.n) if row.n else None),
        Cell(None if right is None else str(right)),
        Cell(percent(row.student), formats.interval(ends, 100)),
        Cell(percent(row.f1)),
        Cell(percent(row.teacher)),
    ]


def _change(row: ClassRow) -> float:
    """Return the change of accuracy from teacher to student in points."""
    return 100 * ((row.student or 0.0) - (row.teacher or 0.0))


def _view(row: ClassRow, widest: float) -> ClassView:
    change = _change(row)
    return ClassView(
        name=str(row.name),
        title=plural(row.n, "image") if row.n else "",
        pair=f"{percent(row.teacher)} \u2192 {percent(row.student)}",
        direction="down" if change < 0 else "up",
        width=round(50 * abs(change) / widest, 2),
        change=signed(change),
    )
