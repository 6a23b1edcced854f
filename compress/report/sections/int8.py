"""How int8 was made: what the search tried, what runs in float inside the file and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compress.report import formats
from compress.report.formats import chance, fixed, is_number, percent, signed, size
from compress.report.read import Source
from compress.report.schema import ModelRow, QuantizeSection, TuningSection
from compress.report.schema.files import TrialRow
from compress.report.schema.measurements import IslandCause
from compress.report.views import Cell, Table, cells

TRIALS = ("Variant", "KL to float", "Agrees", "Size", "Drop, validation", "Why")


@dataclass(frozen=True)
class TuningView:
    """What quantisation-aware training was worth."""

    sentence: str
    how: str


@dataclass(frozen=True)
class Int8View:
    """Everything about int8; empty parts are left out."""

    ships: str
    tuning: TuningView | None
    search: str
    trials: Table | None
    islands: Table | None
    all_integer: bool
    requantised: str


def int8(source: Source) -> Int8View | None:
    """Build the section; None for a run with nothing to show in it."""
    report = source.report
    quantize = report.quantize or QuantizeSection()
    row = next((row for row in report.models if (row.role, row.precision) == ("student", "int8")), ModelRow())
    view = Int8View(
        ships=(report.ships.sentence if report.ships else None) or "",
        tuning=_tuning(report.tuning),
        search=quantize.search or "",
        trials=_trials(quantize.trials),
        islands=_islands(row.island_causes),
        # Without a list this host could not tell.
        all_integer=row.island_causes == [],
        requantised=", ".join(row.requantised or []),
    )
    shown = (view.ships, view.tuning, view.trials, view.islands, view.all_integer, view.requantised)
    return view if any(shown) else None


def _tuning(tuning: TuningSection | None) -> TuningView | None:
    """Build the gain, and how closely the file answers like what was trained."""
    if tuning is None or not tuning.sentence:
        return None
    test = f"; McNemar's exact p {chance(tuning.mcnemar_p)}" if is_number(tuning.mcnemar_p) else ""
    shares = [percent(share, 2) for share in (tuning.top1_float, tuning.top1_static, tuning.top1_validation)]
    before, static, tuned, agreement = (text or "not measured" for text in (*shares, percent(tuning.agreement)))
    return TuningView(
        sentence=formats.sentence_case(tuning.sentence) + ".",
        how=f"{tuning.epochs} further epochs that simulate int8, with the same method and teacher{test}. On validation "
        f"images: float {before}, static int8 {static}, tuned {tuned}. The file agrees with what training simulated "
        f"on {agreement}.",
    )


def _trials(trials: Sequence[TrialRow]) -> Table | None:
    if not trials:
        return None
    rows = [
        [
            Cell(trial.name or "", chip="\u2713 chosen" if trial.chosen else ""),
            Cell(fixed(trial.kl, 5)),
            Cell(percent(trial.agreement)),
            Cell(size(trial.bytes)),
            _drop(trial),
            Cell(trial.reason or ""),
        ]
        for trial in trials
    ]
    return Table("Trials of the int8 search", cells(*TRIALS), rows, ("", "", "", "", "", "text"))


def _drop(trial: TrialRow) -> Cell:
    if not is_number(trial.drop_points):
        return Cell()
    return Cell(signed(trial.drop_points, 2).lstrip("+"), formats.interval(trial.drop_ci95, 1, 2))


def _islands(causes: Sequence[IslandCause] | None) -> Table | None:
    if not causes:
        return None
    rows = [cells(row.op or "", str(row.count), row.cause or "") for row in causes]
    return Table("Islands of float", cells("Operator", "Nodes", "Cause"), rows, ("", "", "text"))
