"""How int8 was made: what the search tried, what runs in float inside the file and why."""

from __future__ import annotations

from compress.report.formats import chance, is_number, signed
from compress.report.markup import NOT_MEASURED, Child, Html, bracket, el, percent, section, size, table
from compress.report.read import Source
from compress.report.schema import ModelRow, QuantizeSection, TuningSection
from compress.report.schema.files import TrialRow
from compress.report.schema.measurements import IslandCause


def int8(source: Source) -> Html | None:
    """The trials of the search, the islands of float, and whether int8 ships; nothing for a run that made none of it."""
    report = source.report
    quantize = report.quantize or QuantizeSection()
    row = next((row for row in report.models if (row.role, row.precision) == ("student", "int8")), ModelRow())
    said = report.ships.sentence if report.ships else None
    parts = [
        el("p", said, class_="said") if said else None,
        _tuning(report.tuning or TuningSection()),
        _trials(quantize.trials, quantize.search),
        _islands(row.island_causes),
        _requantised(row.requantised or []),
    ]
    shown = [part for part in parts if part is not None]
    return section("int8", "Int8", *shown) if shown else None


def _tuning(tuning: TuningSection) -> Html | None:
    """What training with fake quantisation was worth, and how closely the file answers like what was trained."""
    if not tuning.sentence:
        return None
    said = str(tuning.sentence)
    top1 = [percent(share, 2) for share in (tuning.top1_float, tuning.top1_static, tuning.top1_validation)]
    p = f"; McNemar's exact p {chance(tuning.mcnemar_p)}" if is_number(tuning.mcnemar_p) else ""
    how: list[Child] = [
        f"{tuning.epochs} further epochs as int8 computes, by the same method and teacher",
        p,
        ". On validation pictures: float ",
        top1[0],
        ", static int8 ",
        top1[1],
        ", tuned ",
        top1[2],
        ". The file agrees with what training simulated on ",
        percent(tuning.agreement),
        ".",
    ]
    return el(
        "div",
        el("h3", "Tuning"),
        el("p", said[:1].upper() + said[1:] + ".", class_="said"),
        el("p", *how, class_="quiet"),
    )


def _trials(trials: list[TrialRow], said: str | None) -> Html | None:
    if not trials:
        return None
    head = ["Variant", "KL to float", "Agrees", "Size", "Drop, validation", "Why"]
    rows: list[list[Child]] = [
        [_name(trial), _kl(trial), percent(trial.agreement), size(trial.bytes), _drop(trial), _why(trial)]
        for trial in trials
    ]
    lead = el(
        "p",
        f"Search chose {said}. Variants were ranked without labels; the survivors were certified on validation pictures.",
        class_="quiet",
    )
    return el(
        "div",
        el("h3", "Search"),
        lead if said else None,
        table("Trials of the int8 search", head, rows, ["", "", "", "", "", "text"]),
    )


def _name(trial: TrialRow) -> Child:
    return [trial.name, " ", el("span", "\u2713 chosen", class_="chip passed") if trial.chosen else None]


def _kl(trial: TrialRow) -> Child:
    return f"{trial.kl:.5f}" if is_number(trial.kl) else NOT_MEASURED


def _drop(trial: TrialRow) -> Child:
    drop = trial.drop_points
    return [signed(drop, 2).lstrip("+"), bracket(trial.drop_ci95, 1, 2)] if is_number(drop) else ""


def _why(trial: TrialRow) -> Child:
    return trial.reason or ""


def _islands(causes: list[IslandCause] | None) -> Html | None:
    """What runs in float; an empty list is worth a sentence, no list means that this machine could not tell."""
    if causes is None:
        return None
    if not causes:
        return el("p", "Everything behind the first layer runs in integer kernels.", class_="quiet")
    rows: list[list[Child]] = [[row.op, str(row.count), row.cause] for row in causes]
    return el(
        "div",
        el("h3", "What runs in float inside int8"),
        table("Islands of float", ["Operator", "Nodes", "Cause"], rows, ["", "", "text"]),
    )


def _requantised(names: list[str]) -> Html | None:
    if not names:
        return None
    return el(
        "p",
        f"Float in the file, but quantised again by onnxruntime when it loads it: {', '.join(names)}.",
        class_="said",
    )
