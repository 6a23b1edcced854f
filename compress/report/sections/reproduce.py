"""The last part of the page: what it takes to repeat the run and to check its files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compress.report.formats import duration, percent, size
from compress.report.read import Source, measured_rows, model_label
from compress.report.schema import Report, ReportPart
from compress.report.views import Cell, Table, cells

# Keys that other sections show.
SHOWN_ELSEWHERE = {
    ("export", "rewrites"),
    ("quantize", "trials"),
    ("latency", "sustained"),
    ("latency", "photo"),
    ("latency", "disturbances"),
    ("latency", "interrupted"),
    ("latency", "round_other_cores"),
}
INTERRUPTED = "The time of an interrupted training is the sum of its parts."
REUSED = "A reused stage shows the time that it took when it was made."

Facts = list[tuple[str, Cell]]


@dataclass(frozen=True)
class Fold:
    """Something that is folded away: facts, a table or names, with a note below."""

    title: str
    facts: Sequence[tuple[str, Cell]] = ()
    table: Table | None = None
    names: Sequence[str] = ()
    note: str = ""


@dataclass(frozen=True)
class ManifestView:
    """Command, settings, files with their hashes, times, environment."""

    top: Sequence[tuple[str, Cell]]
    folds: Sequence[Fold]


def manifest(source: Source) -> ManifestView:
    """Build the section."""
    report = source.report
    top: Facts = []
    if report.command:
        top.append(("Command", Cell(report.command, code=True)))
    if report.started:
        top.append(("Started", Cell(report.started)))
    top += [(_label(key), value_cell(value)) for key, value in _content(report.data).items()]
    folds = [
        _settings("distill", "Distillation", report.distill),
        _settings("export", "Export", report.export),
        _settings("quantize", "Quantisation", report.quantize),
        _settings("latency", "Timing", report.latency),
        _rewrites(report),
        _files(report),
        _package(report),
        _times(report),
        _dropped(report),
        _settings("environment", "Environment", report.environment),
    ]
    return ManifestView(top, [fold for fold in folds if fold is not None])


def _label(key: str) -> str:
    text = key.replace("_", " ")
    return text[:1].upper() + text[1:]


def value_cell(value: Any) -> Cell:
    """Return any JSON value on one line."""
    if isinstance(value, bool) or value is None:
        return Cell({True: "yes", False: "no", None: "not known"}[value])
    if isinstance(value, int):
        return Cell(f"{value:,}" if abs(value) >= 10000 else str(value))
    if isinstance(value, list) and all(isinstance(item, (str, int, float)) for item in value):
        return Cell(", ".join(str(item) for item in value))
    if isinstance(value, (dict, list)):
        return Cell(json.dumps(value, ensure_ascii=False, sort_keys=True), code=True)
    return Cell(str(value))


def _content(part: ReportPart | Mapping[str, Any] | None) -> Mapping[str, Any]:
    return part.to_json() if isinstance(part, ReportPart) else part or {}


def _settings(key: str, title: str, part: ReportPart | Mapping[str, Any] | None) -> Fold | None:
    """Build one part of the report as it is."""
    shown = [
        (_label(name), value_cell(value))
        for name, value in _content(part).items()
        if value is not None and (key, name) not in SHOWN_ELSEWHERE
    ]
    return Fold(title, shown) if shown else None


def _files(report: Report) -> Fold:
    rows = [
        [
            Cell(row.file or "", code=True),
            Cell(model_label(row)),
            Cell(size(row.bytes)),
            Cell(row.sha256 or "not known", code=True, css="sha"),
        ]
        for row in measured_rows(report)
    ]
    table = Table("Files", cells("File", "What", "Size", "sha256"), rows, ("", "", "", "text"))
    return Fold("Files and checksums", table=table)


def _rewrites(report: Report) -> Fold | None:
    """Build what was rewritten for integer kernels, and what was not, with the numbers that decided."""
    rewrites = report.export.rewrites if report.export else []
    if not rewrites:
        return None
    rows = [
        cells(
            row.name or "",
            str(row.nodes),
            f"{'kept' if row.kept else 'refused'} ({row.files})",
            f"{_scientific(row.max_abs_diff)} of {_scientific(row.limit)}",
            ""
            if row.rewritten_share is None
            else f"{percent(row.integer_share)} \u2192 {percent(row.rewritten_share)}",
            row.reason or "",
        )
        for row in rewrites
    ]
    head = cells("Rewrite", "Nodes", "", "Difference", "Integer kernels", "Why")
    table = Table("Rewrites", head, rows, ("text", "", "text", "", "", "text"))
    return Fold("Float-exact rewrites", table=table)


def _scientific(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.1e}"


def _package(report: Report) -> Fold | None:
    """Build the further forms of the student's files."""
    if not report.package:
        return None
    rows = [
        [
            Cell(row.file or "", code=True),
            Cell(row.target or "any"),
            Cell(size(row.bytes)),
            Cell(", ".join(row.operators or [])),
            Cell(row.sha256 or "not known", code=True, css="sha"),
        ]
        for row in report.package
    ]
    head = cells("File", "For", "Size", "Kernels of a minimal onnxruntime", "sha256")
    table = Table("Further files", head, rows, ("", "", "", "text", "text"))
    return Fold("Further files: one image at a time, minimal onnxruntime", table=table)


def _times(report: Report) -> Fold | None:
    seconds, reused = report.seconds, report.reused
    names = [*seconds, *(name for name in reused if name not in seconds)]
    if not names:
        return None
    rows = [
        [Cell(name), Cell(duration(seconds.get(name))), Cell("reused" if name in reused else "run")] for name in names
    ]
    spent = sum(value for name, value in seconds.items() if name not in reused)
    title = f"Stages: {duration(spent)}" + (f", {len(reused)} of {len(names)} reused" if reused else "")
    note = f"{REUSED} {INTERRUPTED}" if reused else INTERRUPTED
    return Fold(title, table=Table("Stages", cells("Stage", "Time", ""), rows), note=note)


def _dropped(report: Report) -> Fold | None:
    dropped = report.student.dropped
    if not dropped:
        return None
    return Fold(f"{len(dropped)} tensors of the training dropped from the student", names=dropped)
