"""Reads the files of a run folder that the report is made of."""

from __future__ import annotations

import csv
import json
import math
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from compress.core.errors import MissingError, StageError
from compress.report.schema import REQUIRED, ClassRow, ComparisonRow, ModelRow, Report
from compress.report.schema.base import Number
from compress.verdict.class_metrics import f1_of_classes
from compress.verdict.intervals import per_class, top_k_correct

Arrays = dict[str, NDArray[Any]]
HIDDEN = "The recipe keeps images out of the report (report.images: false), so only their files are named."


@dataclass(frozen=True)
class Curve:
    """One training run: columns of a history file, float (E,), NaN where a value is missing.

    `top1`: fractions on validation. `cosines`: cos_classifier and cos_backbone where they were traced.
    """

    name: str
    epoch: NDArray[np.float64]
    top1: NDArray[np.float64] | None
    losses: dict[str, NDArray[np.float64]]
    cosines: dict[str, NDArray[np.float64]] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """Everything that the page is made of.

    `curves`: the student's, the baseline's, then the candidates'. `latency`: file name -> samples in ms. `images`: the
    arrays of pictures.npz. `analysis`: those of analysis.npz. Arrays are empty where there is no such file.
    """

    report: Report
    curves: tuple[Curve, ...]
    latency: Arrays
    images: Arrays
    per_class: list[ClassRow]
    analysis: Arrays = field(default_factory=dict)
    near_duplicates: Arrays = field(default_factory=dict)

    @property
    def hidden(self) -> str:
        """Say why the page shows no image; nothing where it shows them."""
        return HIDDEN if self.report.images_shown is False else ""

    def class_name(self, index: Any) -> str:
        """Return the name of a class; its number where the report has no name for it."""
        names = self.report.classes
        return names[int(index)] if 0 <= int(index) < len(names) else str(int(index))


def read_report(path: Path) -> Report:
    """Read report.json and check that it is one. `path`: the file, or the folder that holds it.

    Raises:
        MissingError: there is no such file.
        StageError: the file is no report of this version.
    """
    path = path / "report.json" if path.is_dir() else path
    again = "write it again with `compress run RECIPE --force report`"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingError(f"{path}: no report here; finish the run with `compress run RECIPE`") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StageError(f"{path}: not a JSON file ({error}); {again}") from None
    missing = [key for key in REQUIRED if key not in content] if isinstance(content, dict) else list(REQUIRED)
    if missing:
        raise StageError(f"{path}: not a report, {', '.join(missing)} missing; {again}")
    if content["schema"] != 1:
        raise StageError(
            f"{path}: schema {content['schema']!r} was written by another version; this one reads schema 1"
        )
    try:
        return Report.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise StageError(f"{path}: not a report, {place}: {first['msg']}; {again}") from None


def read(folder: Path) -> Source:
    """Read everything that the page of a run folder shows.

    Raises: MissingError, StageError as `read_report`; StageError for a damaged file beside it.
    """
    report = read_report(folder)
    predictions = arrays_of(folder / "predictions.npz")
    images = arrays_of(folder / "pictures.npz")
    _check_images(images, folder / "pictures.npz", shown=report.images_shown is not False)
    return Source(
        report=report,
        curves=curves_of(folder),
        latency={
            name: samples[np.isfinite(samples)]
            for name, samples in sorted(arrays_of(folder / "latency.npz").items())
            if not name.startswith("rounds/")
        },
        images=images,
        per_class=report.per_class or _per_class(report, predictions),
        analysis=arrays_of(folder / "analysis.npz", "compress analyze RUN") if report.analysis is not None else {},
        near_duplicates=arrays_of(folder / "near_duplicates.npz"),
    )


def shipped(report: Report) -> ModelRow:
    """Return the row of the file that ships; an empty row where no student was measured.

    It is the file that the report names, else the one that was judged, else the int8 student, else the student.
    """
    judged_files = {row.file for row in report.requirements}
    named = report.ships.file if report.ships else None
    students = [row for row in report.models if row.role == "student"]
    students.sort(key=lambda row: (row.file != named, row.file not in judged_files, row.precision != "int8"))
    return students[0] if students else ModelRow()


def teacher_row(report: Report) -> ModelRow:
    """Return the teacher's row of `models`; an empty row without one."""
    return next((row for row in report.models if row.role == "teacher"), ModelRow())


def float_row(report: Report) -> ModelRow:
    """Return the float student's row of `models`; an empty row without one."""
    return next((row for row in report.models if row.role == "student" and row.precision == "fp32"), ModelRow())


def comparison_of(report: Report, model: str | None, against: str | None) -> ComparisonRow:
    """Return the comparison of two files; an empty row where there is none."""
    rows = [*report.comparisons, *(report.baseline.comparisons if report.baseline else [])]
    return next((row for row in rows if row.model == model and row.against == against), ComparisonRow())


def judged(report: Report, name: str, file: str | None) -> Number | None:
    """Return the value that a limit on a file was last judged by on this host; None without such a limit."""
    rows = (row for row in report.requirements if (row.name, row.target, row.file) == (name, "local", file))
    return next((row.value for row in rows), None)


def measured_rows(report: Report) -> list[ModelRow]:
    """Return the rows of all measured files, the baseline's last."""
    return [*report.models, *(report.baseline.models if report.baseline else [])]


def method_of(report: Report) -> str | None:
    """Return the distillation method; None for plain cross-entropy, or where the report names none."""
    method = report.student.method or (report.distill or {}).get("method")
    return str(method) if method and method != "none" else None


def model_label(row: ModelRow) -> str:
    """Return what the page calls a file: role, precision and variant."""
    return " ".join(part for part in (row.role or "model", row.precision, row.variant) if part)


def arrays_of(path: Path, again: str = "compress run RECIPE --force validate") -> Arrays:
    """Return the arrays of an .npz file; none without the file. `again`: the command that writes it."""
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
        raise StageError(f"{path}: cannot be read ({error}); write it again with `{again}`") from None


def _check_images(found: Arrays, path: Path, *, shown: bool) -> None:
    """Refuse images that the page could not show. `shown`: whether the file holds images at all."""
    if not found or (not shown and {"names", "labels", "student"} <= set(found)):
        return
    missing = {"images", "labels", "teacher", "student"} - set(found)
    images = found.get("images")
    if missing or images is None or images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise StageError(f"{path}: needs images (M, H, W, 3) uint8 with labels, teacher and student (M,)")


def curves_of(folder: Path) -> tuple[Curve, ...]:
    """Read every history file of a run folder: student and baseline first, then the candidates by name."""
    order = {"student": 0, "baseline": 1}
    paths = sorted((folder / "history").glob("*.csv"), key=lambda path: (order.get(path.stem, 2), path.stem))
    return tuple(curve for curve in map(_curve, paths) if curve is not None)


def _number(text: str | None) -> float:
    try:
        return float(text) if text else math.nan
    except ValueError:
        return math.nan


def _curve(path: Path) -> Curve | None:
    """Read one history file; None when it has no epoch yet."""
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    if not rows or "epoch" not in rows[0]:
        return None
    columns = {name: np.array([_number(row.get(name)) for row in rows]) for name in rows[0] if name}
    known = {"epoch", "lr", "images_per_second", "seconds"}
    other = {name for name in columns if name in known or name.endswith("_validation")}
    finite = {name: values for name, values in columns.items() if name not in other and np.isfinite(values).any()}
    losses = {name: values for name, values in finite.items() if not name.startswith("cos_")}
    cosines = {name: values for name, values in finite.items() if name.startswith("cos_")}
    return Curve(path.stem, columns["epoch"], columns.get("top1_validation"), losses, cosines)


def _per_class(report: Report, predictions: Arrays) -> list[ClassRow]:
    """Compute the accuracies of each class from the stored logits, where both files have them."""
    labels = predictions.get("labels")
    teacher = predictions.get(f"logits/{teacher_row(report).file}")
    student = predictions.get(f"logits/{shipped(report).file}")
    if labels is None or teacher is None or student is None:
        return []
    names = report.classes or [str(index) for index in range(teacher.shape[1])]
    changes = per_class(labels, top_k_correct(teacher, labels, 1), top_k_correct(student, labels, 1), len(names))
    f1 = f1_of_classes(labels, student.argmax(axis=1), len(names))
    rows = (
        {
            "class": names[row.index],
            "n": row.n,
            "teacher": row.reference,
            "student": row.model,
            "f1": float(f1[row.index]) if row.n else None,
        }
        for row in changes
    )
    return [ClassRow.model_validate(row) for row in rows]
