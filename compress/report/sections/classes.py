"""How the accuracy of each class changed from the teacher to the shipped student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compress.core.plural import plural
from compress.report.formats import is_number, percent, signed
from compress.report.read import Source
from compress.report.schema import ClassRow

MOST_CLASSES = 20
# Of more classes the worst and the best are shown, the rest is folded away.
WORST, BEST = 12, 4


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
    """The classes that are shown at once, and those that are folded away."""

    shown: Sequence[ClassView]
    folded: Sequence[ClassView]


def classes(source: Source) -> ClassesView | None:
    """Build the changes, the worst first; None where they are not known."""
    rows = [row for row in source.per_class if is_number(row.teacher) and is_number(row.student)]
    if not rows:
        return None
    rows.sort(key=_change)
    widest = max(max(abs(_change(row)) for row in rows), 1.0)
    views = [_view(row, widest) for row in rows]
    if len(views) <= MOST_CLASSES:
        return ClassesView(views, [])
    return ClassesView(views[:WORST] + views[-BEST:], views[WORST:-BEST])


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
