"""Writes `report.html`: one file without scripts or references, for a phone, a desktop and paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compress.core.files import write_atomically
from compress.report import analysis_plots, plots
from compress.report.read import Source, method_of, read
from compress.report.sections import (
    analysis,
    classes,
    devices,
    images,
    int8,
    latency,
    method,
    models,
    near_duplicates,
    plan,
    reproduce,
    slices,
    teacher,
    training,
    verdict,
    warnings,
)
from compress.report.templating import environment


def render(folder: Path) -> Path:
    """Write `folder/report.html` and `folder/plots/*.svg` from the run's files, and return the page's path.

    Equal files give equal bytes: no time of rendering is written.

    Raises:
        MissingError: there is no report.json.
        StageError: it is not a report, or a file beside it is damaged.
    """
    source = read(folder)
    drawn = {**plots.draw(source), **analysis_plots.draw(source)}
    for name, svg in drawn.items():
        _write(folder / "plots" / f"{name}.svg", svg)
    return _write(folder / "report.html", page(source, drawn))


def page(source: Source, drawn: dict[str, str]) -> str:
    """Return the whole document. `drawn`: SVG documents by name."""
    report = source.report
    # Anchor, which is the template's name too; title; view, None where there is nothing to show.
    sections: list[tuple[str, str, Any]] = [
        ("verdict", "Verdict", verdict.verdict(source)),
        ("requirements", "Requirements", verdict.requirements(source)),
        ("distillation", "Distillation", verdict.distillation(source)),
        ("models", "Models", models.models(source)),
        ("latency", "Latency", latency.latency(source, drawn)),
        ("int8", "Int8", int8.int8(source)),
        ("plan", "Before training", plan.choice(source)),
        ("teacher", "Teacher", teacher.teacher(source)),
        ("method", "Method", method.method(source)),
        ("training", "Training", training.training(source, drawn)),
        ("slices", "Slices", slices.slices(source)),
        ("classes", "Classes", classes.classes(source)),
        ("near_duplicates", "Near-duplicates", near_duplicates.near_duplicates(source)),
        ("pictures", "Images", images.lost_images(source)),
        ("understanding", "Understanding", analysis.understanding(source, drawn)),
        ("device", "Device", devices.devices(source)),
        ("warnings", "Warnings", warnings.warnings(source)),
        ("repeat", "Repeat", reproduce.manifest(source)),
    ]
    student, teacher_name, by = report.student.model, report.teacher.model, method_of(report)
    made = f"{student or 'student'} from {teacher_name or 'teacher'}" + (f", distilled with {by}" if by else "")
    return (
        environment()
        .get_template("page.html")
        .render(
            title=f"{report.recipe}: {report.status}",
            recipe=report.recipe,
            made=made,
            started=(report.started or "")[:10],
            sections=[
                {"anchor": anchor, "name": name, "view": view} for anchor, name, view in sections if view is not None
            ],
        )
    )


def section(anchor: str, view: Any) -> str:
    """Return one section of the page."""
    return environment().get_template(f"{anchor}.html").render(view=view)


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())
    return path
