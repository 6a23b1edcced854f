"""The run folder: every file that ships, report.json with the verdict, report.html."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np

from compress.core.files import write_json
from compress.core.records.base import File
from compress.report import gallery, prediction_table
from compress.report.evidence import Evidence
from compress.report.read import Arrays, arrays_of
from compress.report.report_json import assemble
from compress.report.schema import Report
from compress.verdict.shipped_model import shipping


def write(evidence: Evidence, folder: Path) -> Report:
    """Fill the run folder and return the content of report.json."""
    from compress.report.page import render

    report = assemble(evidence)
    _copy_files(evidence, folder)
    _write_predictions(evidence, folder / prediction_table.NAME)
    write_json(folder / "environment.json", evidence.environment)
    write_json(folder / "report.json", report.to_json())
    render(folder)
    return report


def _copy_files(evidence: Evidence, folder: Path) -> None:
    """Copy, not link, the files: a run folder can be moved, mailed and kept after the cache is cleaned."""
    for model in shipping(evidence.models, evidence.measured):
        shutil.copyfile(model.file.path, folder / model.name)
        if model.contract is not None:
            shutil.copyfile(model.contract.path, folder / f"{model.name}.contract.json")
    shutil.copyfile(evidence.student.stripped.trained.weights.path, folder / "student.safetensors")
    for extra in evidence.packaged.files if evidence.packaged else ():
        shutil.copyfile(extra.file.path, folder / extra.name)
    for name, file in (
        ("predictions.npz", evidence.measured.predictions),
        ("latency.npz", evidence.measured.latency_samples),
    ):
        shutil.copyfile(file.path, folder / name)
    _write_gallery(evidence, folder / "pictures.npz")
    if evidence.near_duplicates is not None and (evidence.near_duplicates.test or evidence.near_duplicates.validation):
        _write_images(evidence, arrays_of(evidence.near_duplicates.examples.path), folder / "near_duplicates.npz")
    histories: dict[str, File | None] = {"student": evidence.student.trained.history}
    for name, branch in (("student", evidence.student), ("baseline", evidence.baseline)):
        if branch is not None and branch.tuned is not None:
            histories[f"{name}-tuning"] = branch.tuned.history
    if evidence.baseline is not None:
        histories["baseline"] = evidence.baseline.trained.history
    for number, one in enumerate(evidence.candidates, 1):
        name = one.network.model.replace("/", "-")
        histories[f"{name}-{number}" if name in histories else name] = one.history
    (folder / "history").mkdir(exist_ok=True)
    for name, history in histories.items():
        if history is not None:
            shutil.copyfile(history.path, folder / "history" / f"{name}.csv")
    shutil.copyfile(evidence.measured.bundle.path, folder / "bundle.zip")
    with zipfile.ZipFile(evidence.measured.bundle.path) as archive:
        archive.extractall(folder)


def _write_gallery(evidence: Evidence, path: Path) -> None:
    """Write the images that the report shows, with the names of their files, or their numbers without an image."""
    chosen, predictions = arrays_of(evidence.measured.gallery.path), arrays_of(evidence.measured.predictions.path)
    names = paths_of_test_images(evidence)
    if names is None and not evidence.recipe.shows_images:
        names = [f"test image {number}" for number in range(len(predictions["labels"]))]
    _write_images(evidence, chosen if names is None else gallery.with_names(chosen, predictions, names), path)


def _write_images(evidence: Evidence, arrays: Arrays, path: Path) -> None:
    kept = arrays if evidence.recipe.shows_images else gallery.without_images(arrays)
    np.savez_compressed(path, **kept)  # type: ignore[arg-type]


def _write_predictions(evidence: Evidence, path: Path) -> None:
    """Write predictions.csv from the logits of predictions.npz."""
    stored = arrays_of(evidence.measured.predictions.path)
    prediction_table.write(
        path,
        stored["labels"],
        {model.name: stored[f"logits/{model.name}"] for model in evidence.models},
        evidence.prepared.classes,
        paths_of_test_images(evidence),
        frozenset(model.name for model in evidence.models if model.contract is not None),
    )


def paths_of_test_images(evidence: Evidence) -> list[str] | None:
    """Return the paths of the test images relative to `data.root`, with `/`; None where the images have no files."""
    file = evidence.prepared.test_names
    return None if file is None else [str(name) for name in np.load(file.path, allow_pickle=False)]
