"""The last part of the page: what it takes to repeat the run and to check its files."""

from __future__ import annotations

import json
from typing import Any

from compress.report.markup import Child, Html, duration, el, facts, percent, section, size, table
from compress.report.read import Source, measured_rows, model_label
from compress.report.schema import Report, ReportPart

SETTINGS = (("distill", "Distillation"), ("export", "Export"), ("quantize", "Quantisation"), ("latency", "Timing"))
TABLES = {  # are shown elsewhere
    ("export", "rewrites"),
    ("quantize", "trials"),
    ("latency", "sustained"),
    ("latency", "photo"),
    ("latency", "disturbances"),
    ("latency", "interrupted"),
    ("latency", "round_other_cores"),
}


def manifest(source: Source) -> Html:
    """Command, settings, files with their hashes, times, environment."""
    report = source.report
    top: list[tuple[Child, Child]] = []
    if report.command:
        top.append(("Command", el("code", report.command)))
    if report.started:
        top.append(("Started", str(report.started)))
    top += [(_words(key), _value(value)) for key, value in (report.data.to_json() if report.data else {}).items()]
    settings = [_settings(report, key, title) for key, title in SETTINGS]
    parts = [
        facts(top) if top else None,
        *settings,
        _rewrites(report),
        _files(report),
        _package(report),
        _times(report),
        _dropped(report),
        _settings(report, "environment", "Environment"),
    ]
    return section("repeat", "Repeat and check", *parts)


def _words(key: str) -> str:
    """A key as a label."""
    text = str(key).replace("_", " ")
    return text[:1].upper() + text[1:]


def _value(value: Any) -> Child:
    """Any JSON value on one line."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "not known"}[value]
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10000 else str(value)
    if isinstance(value, list) and all(isinstance(item, (str, int, float)) for item in value):
        return ", ".join(str(item) for item in value)
    return (
        el("code", json.dumps(value, ensure_ascii=False, sort_keys=True))
        if isinstance(value, (dict, list))
        else str(value)
    )


def _settings(report: Report, key: str, title: str) -> Html | None:
    """One part of the report as it stands, folded away."""
    part = getattr(report, key)
    settings: dict[str, Any] = part.to_json() if isinstance(part, ReportPart) else part or {}
    shown = {name: value for name, value in settings.items() if value is not None and (key, name) not in TABLES}
    return (
        el("details", el("summary", title), facts((_words(name), _value(value)) for name, value in shown.items()))
        if shown
        else None
    )


def _files(report: Report) -> Html:
    rows = measured_rows(report)
    lines: list[list[Child]] = [
        [
            el("code", row.file),
            model_label(row),
            size(row.bytes),
            el("code", row.sha256 or "not known", class_="sha"),
        ]
        for row in rows
    ]
    body = table("Files", ["File", "What", "Size", "sha256"], lines, ["", "", "", "text"])
    return el("details", el("summary", "Files and checksums"), body)


def _rewrites(report: Report) -> Html | None:
    """What was rewritten for integer kernels, and what was not, with the numbers that decided."""
    rows = report.export.rewrites if report.export else []
    if not rows:
        return None
    lines: list[list[Child]] = [
        [
            row.name,
            str(row.nodes),
            f"{'kept' if row.kept else 'refused'} ({row.files})",
            f"{row.max_abs_diff:.1e} of {row.limit:.1e}",
            f"{percent(row.integer_share)} \u2192 {percent(row.rewritten_share)}"
            if row.rewritten_share is not None
            else "",
            row.reason,
        ]
        for row in rows
    ]
    body = table(
        "Rewrites",
        ["Rewrite", "Nodes", "", "Difference", "Integer kernels", "Why"],
        lines,
        ["text", "", "text", "", "", "text"],
    )
    return el("details", el("summary", "Float-exact rewrites"), body)


def _package(report: Report) -> Html | None:
    """Further forms of the student's files."""
    rows = report.package
    if not rows:
        return None
    lines: list[list[Child]] = [
        [
            el("code", row.file),
            row.target or "any",
            size(row.bytes),
            ", ".join(row.operators or []),
            el("code", row.sha256, class_="sha"),
        ]
        for row in rows
    ]
    body = table(
        "Further files",
        ["File", "For", "Size", "Kernels of a minimal onnxruntime", "sha256"],
        lines,
        ["", "", "", "text", "text"],
    )
    return el("details", el("summary", "Further files: one picture at a time, minimal onnxruntime"), body)


def _times(report: Report) -> Html | None:
    seconds, reused = report.seconds, report.reused
    names = list(seconds) + [name for name in reused if name not in seconds]
    if not names:
        return None
    lines: list[list[Child]] = [
        [name, duration(seconds.get(name)), "reused" if name in reused else "run"] for name in names
    ]
    spent = sum(value for name, value in seconds.items() if name not in reused and isinstance(value, (int, float)))
    total = [f"Stages: {duration(spent)}"] + ([f", {len(reused)} of {len(names)} reused"] if reused else [])
    told = "The time of a training that was interrupted is that of all its parts."
    note = el(
        "p", f"A reused stage shows the time that it took when it was made. {told}" if reused else told, class_="quiet"
    )
    return el("details", el("summary", total), table("Stages", ["Stage", "Time", ""], lines), note)


def _dropped(report: Report) -> Html | None:
    dropped = report.student.dropped
    if not dropped:
        return None
    lines = el("ul", *(el("li", el("code", key)) for key in dropped), class_="notes")
    return el("details", el("summary", f"{len(dropped)} tensors of the training dropped from the student"), lines)
