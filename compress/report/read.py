"""Reads what a run left in its folder into one record of plain values and arrays."""

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

from compress.core.errors import MissingError, StageError
from compress.verdict.intervals import per_class, top_k_correct

CONTRACT = (
    "schema",
    "recipe",
    "status",
    "teacher",
    "student",
    "models",
    "comparisons",
    "requirements",
    "seconds",
    "reused",
    "environment",
)

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Curve:
    """One training run: columns of a history file, float (E,), NaN where a value is missing."""

    name: str
    epoch: NDArray[np.float64]
    top1: NDArray[np.float64] | None  # fractions, on validation
    losses: dict[str, NDArray[np.float64]]
    cosines: dict[str, NDArray[np.float64]] = field(
        default_factory=dict
    )  # cos_classifier, cos_backbone, where they were traced


@dataclass(frozen=True)
class Source:
    """All that a report is made of."""

    report: dict[str, Any]
    curves: tuple[Curve, ...]  # student, baseline, then the teacher's candidates
    latency: Arrays  # file name -> samples in ms
    pictures: Arrays  # images, labels, teacher, student; empty without them
    per_class: list[dict[str, Any]]
    analysis: Arrays = field(default_factory=dict)  # of `compress analyze`; empty without it

    def class_name(self, index: Any) -> str:
        """Of a class by its number; the number, where the report has no name for it."""
        names = self.report.get("classes") or []
        return str(names[int(index)]) if 0 <= int(index) < len(names) else str(int(index))


def read_report(path: Path) -> dict[str, Any]:
    """The JSON of one run, checked for the contract's keys. `path`: report.json or the folder that holds it.

    Raises: MissingError without the file; StageError for a file that is no report.
    """
    path = path / "report.json" if path.is_dir() else path
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingError(f"{path}: no report here; finish the run with `compress run RECIPE`") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StageError(
            f"{path}: not a JSON file ({error}); write it again with `compress run RECIPE --force report`"
        ) from None
    missing = [key for key in CONTRACT if key not in report] if isinstance(report, dict) else list(CONTRACT)
    if missing:
        raise StageError(
            f"{path}: not a report, {', '.join(missing)} missing; write it again with `compress run RECIPE --force report`"
        )
    if report["schema"] != 1:
        raise StageError(f"{path}: schema {report['schema']!r} was written by another version; this one reads schema 1")
    return report


def read(folder: Path) -> Source:
    """Everything that the report of a run folder shows.

    Raises: MissingError, StageError as `read_report`; StageError for a damaged file beside it.
    """
    report = read_report(folder)
    predictions = arrays_of(folder / "predictions.npz")
    pictures = arrays_of(folder / "pictures.npz")
    _check_pictures(pictures, folder / "pictures.npz")
    return Source(
        report=report,
        curves=curves_of(folder),
        latency={
            name: samples[np.isfinite(samples)]
            for name, samples in sorted(arrays_of(folder / "latency.npz").items())
            if not name.startswith("rounds/")
        },
        pictures=pictures,
        per_class=report.get("per_class") or _per_class(report, predictions),
        analysis=arrays_of(folder / "analysis.npz", "compress analyze RUN") if "analysis" in report else {},
    )


def shipped(report: dict[str, Any]) -> dict[str, Any]:
    """The row of the model that ships: the one that the report names, else the one that was judged, else the int8 student, else the student."""
    students = [row for row in report["models"] if row.get("role") == "student"]
    judged = {row.get("file") for row in report["requirements"]}
    named = (report.get("ships") or {}).get("file")
    students.sort(
        key=lambda row: (row.get("file") != named, row.get("file") not in judged, row.get("precision") != "int8")
    )
    return students[0] if students else {}


def teacher_row(report: dict[str, Any]) -> dict[str, Any]:
    """The teacher's row of `models`."""
    return next((row for row in report["models"] if row.get("role") == "teacher"), {})


def comparison_of(report: dict[str, Any], model: str | None, against: str | None) -> dict[str, Any]:
    """The comparison of two files, empty where there is none."""
    rows = report["comparisons"] + (report.get("baseline") or {}).get("comparisons", [])
    return next((row for row in rows if row.get("model") == model and row.get("against") == against), {})


def speedup(report: dict[str, Any]) -> float | None:
    """How many times as fast as the teacher the shipped file is on this machine: as a limit on it was last judged, else as it was validated."""
    ship = shipped(report)
    found = judged(report, "min_speedup", ship.get("file"))
    return (
        comparison_of(report, ship.get("file"), teacher_row(report).get("file")).get("speedup_p50")
        if found is None
        else found
    )


def judged(report: dict[str, Any], name: str, file: str | None) -> float | None:
    """What a limit on a file was last held against on this machine; None where there is no such limit."""
    asked = (name, "local", file)
    return next(
        (
            row.get("value")
            for row in report["requirements"]
            if (row.get("name"), row.get("target"), row.get("file")) == asked
        ),
        None,
    )


def measured_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of all measured files, the baseline's last."""
    return report["models"] + (report.get("baseline") or {}).get("models", [])


def method_of(report: dict[str, Any]) -> str | None:
    """The distillation method, where the run names one."""
    method = report["student"].get("method") or (report.get("distill") or {}).get("method")
    return str(method) if method and method != "none" else None


def model_label(row: dict[str, Any]) -> str:
    """How the report calls a model: its role and precision, and whether it is the static form of a tuned student."""
    return " ".join(str(part) for part in (row.get("role", "model"), row.get("precision"), row.get("variant")) if part)


def arrays_of(path: Path, again: str = "compress run RECIPE --force validate") -> Arrays:
    """The arrays of an .npz file; none without the file. `again`: the command that writes it."""
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
        raise StageError(f"{path}: cannot be read ({error}); write it again with `{again}`") from None


def _check_pictures(pictures: Arrays, path: Path) -> None:
    """Refuse pictures that the page could not show."""
    if not pictures:
        return
    missing = {"images", "labels", "teacher", "student"} - set(pictures)
    images = pictures.get("images")
    if missing or images is None or images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise StageError(f"{path}: needs images (M, H, W, 3) uint8 with labels, teacher and student (M,)")


def curves_of(folder: Path) -> tuple[Curve, ...]:
    """Every history file of a run folder: student and baseline first, then the candidates by name."""
    order = {"student": 0, "baseline": 1}
    paths = sorted((folder / "history").glob("*.csv"), key=lambda path: (order.get(path.stem, 2), path.stem))
    return tuple(curve for curve in map(_curve, paths) if curve is not None)


def _number(text: str | None) -> float:
    try:
        return float(text) if text else math.nan
    except ValueError:
        return math.nan


def _curve(path: Path) -> Curve | None:
    """One history file; None when it has no epoch yet."""
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    if not rows or "epoch" not in rows[0]:
        return None
    columns = {name: np.array([_number(row.get(name)) for row in rows]) for name in rows[0] if name}
    known = {"epoch", "lr", "top1_validation", "images_per_second", "seconds"}
    finite = {name: values for name, values in columns.items() if name not in known and np.isfinite(values).any()}
    losses = {name: values for name, values in finite.items() if not name.startswith("cos_")}
    cosines = {name: values for name, values in finite.items() if name.startswith("cos_")}
    return Curve(path.stem, columns["epoch"], columns.get("top1_validation"), losses, cosines)


def _per_class(report: dict[str, Any], predictions: Arrays) -> list[dict[str, Any]]:
    """Accuracies of each class from the stored logits, where both models have them."""
    labels = predictions.get("labels")
    teacher = predictions.get(f"logits/{teacher_row(report).get('file')}")
    student = predictions.get(f"logits/{shipped(report).get('file')}")
    if labels is None or teacher is None or student is None:
        return []
    names = report.get("classes") or [str(index) for index in range(teacher.shape[1])]
    changes = per_class(labels, top_k_correct(teacher, labels, 1), top_k_correct(student, labels, 1), len(names))
    return [{"class": names[row.index], "n": row.n, "teacher": row.reference, "student": row.model} for row in changes]
