"""Writes `report.html`: one file without scripts or references, for a phone, a desktop and paper."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from string import Template

from compress.core.files import write_atomically
from compress.report import analysis_plots, plots
from compress.report.markup import Html, el, escape, join
from compress.report.read import Source, method_of, read
from compress.report.sections import (
    analysis,
    devices,
    int8,
    models,
    plan,
    reproduce,
    slices,
    teacher_training_latency,
    verdict,
)


def render(folder: Path) -> Path:
    """Write `folder/report.html` and `folder/plots/*.svg` from what lies in the folder; returns the page's path.

    Raises: MissingError without report.json; StageError for one that is not a report, or a damaged file beside it.
    """
    source = read(folder)
    drawn = {**plots.draw(source), **analysis_plots.draw(source)}
    for name, svg in drawn.items():
        _write(folder / "plots" / f"{name}.svg", svg)
    return _write(folder / "report.html", page(source, drawn))


def page(source: Source, drawn: dict[str, str]) -> str:
    """The whole document."""
    report = source.report
    sections = [
        ("verdict", "Verdict", verdict.verdict(source)),
        ("requirements", "Requirements", verdict.requirements(source)),
        ("distillation", "Distillation", verdict.distillation(source)),
        ("models", "Models", models.models(source)),
        ("latency", "Latency", teacher_training_latency.latency(source, drawn)),
        ("int8", "Int8", int8.int8(source)),
        ("plan", "Before training", plan.choice(source)),
        ("teacher", "Teacher", teacher_training_latency.teacher(source)),
        ("training", "Training", teacher_training_latency.training(source, drawn)),
        ("slices", "Slices", slices.slices(source)),
        ("classes", "Classes", teacher_training_latency.classes(source)),
        ("pictures", "Pictures", teacher_training_latency.pictures(source)),
        ("understanding", "Understanding", analysis.understanding(source, drawn)),
        ("device", "Device", devices.devices(source)),
        ("warnings", "Warnings", teacher_training_latency.warnings(source)),
        ("repeat", "Repeat", reproduce.manifest(source)),
    ]
    shown = [(anchor, name, part) for anchor, name, part in sections if part is not None]
    links = el("nav", *(el("a", name, href=f"#{anchor}") for anchor, name, _ in shown), aria_label="Sections")
    body = join([_header(source, links), *(part for _, _, part in shown)], "\n")
    files = resources.files("compress.report")
    template = Template((files / "page.html").read_text(encoding="utf-8"))
    title = escape(f"{report.recipe}: {report.status}")
    return template.substitute(title=title, style=(files / "report.css").read_text(encoding="utf-8"), body=body.text)


def _header(source: Source, links: Html) -> Html:
    """What was made from what."""
    report = source.report
    student, teacher = report.student.model, report.teacher.model
    method = method_of(report)
    made = f"{student or 'student'} from {teacher or 'teacher'}" + (f", distilled with {method}" if method else "")
    started = (report.started or "")[:10]
    kicker = el("p", "Compression report" + (f" \u00b7 {started}" if started else ""), class_="kicker")
    return el("header", kicker, el("h1", report.recipe), el("p", made, class_="under"), links)


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())
    return path
