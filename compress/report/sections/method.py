"""How `distill.method: auto` chose the method."""

from __future__ import annotations

from dataclasses import dataclass

from compress.core.plural import plural
from compress.report.formats import duration, percent
from compress.report.read import Source
from compress.report.schema import MethodTrialRow
from compress.report.views import Cell, Table, cells


@dataclass(frozen=True)
class MethodView:
    """The table of trials; `lead` says why a method was chosen, `how` what a trial is."""

    lead: str
    how: str
    table: Table


def method(source: Source) -> MethodView | None:
    """Build the section; None where the recipe names its method."""
    found = source.report.method_choice
    if found is None:
        return None
    head = cells("Method", "Top-1, validation", "By seed", "Gain over the simplest, points", "p after Holm")
    part = "the validation images"
    if (found.folds or 1) > 1:
        part = f"all training images in {found.folds} parts, each by trainings on the others"
    share = "" if found.share in (None, 1) else f" on {percent(found.share, 0)} of the images"
    took = f" All trials took {duration(found.seconds)}." if found.seconds else ""
    how = (
        f"Each method trained the student for {plural(found.epochs or 0, 'epoch')}{share}, with "
        f"{plural(found.seeds or 0, 'seed')}, and was judged on {part}, image by image.{took}"
    )
    rows = [_row(row, found.trials[0].method or "") for row in found.trials]
    return MethodView(found.reason or "", how, Table("Trials of the methods", head, rows))


def _row(row: MethodTrialRow, simplest: str) -> list[Cell]:
    gain = "the simplest" if row.method == simplest else None
    if row.gain_points is not None and row.gain_ci95 is not None:
        gain = f"{row.gain_points:+.2f} [{row.gain_ci95[0]:.2f}, {row.gain_ci95[1]:.2f}]"
    return [
        Cell(row.method or "", chip="\u2713 chosen" if row.chosen else ""),
        Cell(percent(row.top1_validation, 2)),
        Cell(", ".join(percent(value, 1) or "" for value in row.top1_by_seed)),
        Cell(gain),
        Cell(None if row.p_holm is None else f"{row.p_holm:.2g}"),
    ]
