"""`compress analyze`: adds to a finished run's report what its distillation did. Trains nothing, reads no test image.

Test logits are those that `validate` stored. Features and heads are computed on validation images from the cache.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from compress.commands.analyze import calibration
from compress.core.console import Console
from compress.core.errors import MissingError, StageError, UsageError
from compress.core.files import write_atomically, write_json
from compress.pipeline.run_folder.recipe_copy import RESOLVED, again
from compress.report.read import arrays_of, curves_of, float_row, read_report, shipped, teacher_row
from compress.report.schema import AnalysisSection, Report

ARRAYS = "analysis.npz"
SEED = 0
INSTALL = "pip install 'scikit-learn>=1.5'"

Row = dict[str, Any]
Arrays = dict[str, NDArray[Any]]


def analyze(folder: Path, *, against: Sequence[Path], artifacts: Path, console: Console) -> Path:
    """Write the analysis into report.json, analysis.npz and report.html of a run; an earlier one is replaced.

    Args:
        folder: the run.
        against: other runs, whose training curves are drawn beside this one's.
        artifacts: where the cache is.
        console: where findings are printed.

    Returns:
        The path of the page.

    Raises:
        MissingError, StageError: as `read_report`.
        UsageError: a run is compared with itself.
    """
    from compress.report import analysis_plots
    from compress.report.page import render

    report = read_report(folder)
    arrays: Arrays = {}
    content: Row = {"seed": SEED, "gradients": _gradients(folder, report), "against": _against(folder, against, arrays)}
    content |= _by_logits(folder, report, arrays)
    content |= _by_networks(folder, report, artifacts.absolute(), arrays, console)
    for sentence in sentences(content):
        console.line(sentence)
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    write_atomically(folder / ARRAYS, stream.getvalue())
    found = report.model_copy(update={"analysis": AnalysisSection.model_validate(content)})
    write_json(folder / "report.json", found.to_json())
    for name in analysis_plots.NAMES:
        (folder / "plots" / f"{name}.svg").unlink(missing_ok=True)
    return render(folder)


def sentences(content: Row) -> list[str]:
    """Return what the analysis found, for the console."""
    said = [
        content[key]["sentence"] for key in ("gradients", "logits", "features") if content.get(key, {}).get("sentence")
    ]
    said += [
        f"correlations of logits, {row['what']} against teacher on {row['pictures']:,} {row['split']} images: "
        f"mean |difference| {row['mean_abs']:.4f}, largest {row['max_abs']:.3f}"
        for row in (*content["correlations"], *content["heads"])
    ]
    for row in content["calibration"]:
        low, high = (100 * end for end in row["ece_ci95"])
        said.append(f"expected calibration error of {row['file']}: {100 * row['ece']:.2f} % [{low:.2f}, {high:.2f}]")
    return said


def _gradients(folder: Path, report: Report) -> Row:
    """Return which cosines the student's history holds, and how to record them if it holds none."""
    path = folder / RESOLVED
    settings = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    every = (settings.get("train") or {}).get("trace_gradients")
    student = next((curve for curve in curves_of(folder) if curve.name == "student"), None)
    found = {
        name.removeprefix("cos_"): float(np.nanmin(values))
        for name, values in (student.cosines if student else {}).items()
    }
    sentence = None
    if not found and every is None:
        command = report.command or again(folder)
        how = f"{command} --set train.trace_gradients=20"
        sentence = f"The cosine between the losses' gradients was not recorded; record it with: {how}"
    elif not found:
        sentence = "The method has one loss, so there is no cosine between gradients."
    return {"every": every, "lowest": found, "head": _head(settings), "sentence": sentence}


def _head(settings: Row) -> Row | None:
    """Return DHKD's settings that decide where its two losses meet; None for another method."""
    distill = settings.get("distill") or {}
    methods = distill.get("method")
    if "dhkd" not in (methods if isinstance(methods, list) else [methods]):
        return None
    own = {**(distill.get("dhkd") or {}), **distill}
    return {name: own.get(name) for name in ("head", "loss", "align", "alpha", "temperature")}


def _by_logits(folder: Path, report: Report, arrays: Arrays) -> Row:
    """Compute correlations and calibration from the test logits that `validate` stored."""
    stored = arrays_of(folder / "predictions.npz")
    rows = {"teacher": teacher_row(report), "float student": float_row(report), "int8 student": shipped(report)}
    files = {what: row.file for what, row in rows.items()}
    if files["int8 student"] == files["float student"]:
        del files["int8 student"]
    logits = {what: stored[f"logits/{file}"] for what, file in files.items() if f"logits/{file}" in stored}
    if "labels" not in stored or "teacher" not in logits or "float student" not in logits:
        absent = f"{folder / 'predictions.npz'} does not hold the test logits of teacher and student"
        sentence = f"{absent}, so they are not compared."
        return {"logits": {"sentence": sentence}, "correlations": [], "calibration": []}
    labels = stored["labels"]
    table = []
    for number, (what, values) in enumerate(logits.items()):
        found = calibration.reliability(values, labels, seed=SEED)
        row = {
            "what": what,
            "file": files[what],
            "pictures": found.n,
            "bins": calibration.BINS,
            "resamples": calibration.RESAMPLES,
            "ece": found.ece,
            "ece_ci95": list(found.ece_ci95),
            "confidence": found.confidence,
            "top1": found.top1,
            "nll": found.nll,
        }
        table.append(row)
        parts = {"pictures": found.images, "confidence": found.mean_confidence, "accuracy": found.accuracy}
        arrays |= {f"calibration_{number}_{name}": value for name, value in parts.items()}
    first = _correlated("float student", logits["float student"], logits["teacher"], labels, "test", arrays, 0)
    return {"logits": {"sentence": None}, "correlations": [first], "calibration": table}


def _correlated(
    what: str,
    logits: NDArray[np.float32],
    teacher: NDArray[np.float32],
    labels: NDArray[np.int64],
    split: str,
    arrays: Arrays,
    number: int,
) -> Row:
    """Subtract the teacher's correlations from a student's; the matrix goes into `arrays`."""
    difference = calibration.correlation(logits) - calibration.correlation(teacher)
    arrays[f"correlation_{number}"] = difference
    beside = np.abs(calibration.off_diagonal(difference))
    means = np.abs(
        calibration.off_diagonal(calibration.mean_logits(logits, labels) - calibration.mean_logits(teacher, labels))
    )
    finite = means[np.isfinite(means)]
    return {
        "what": what,
        "split": split,
        "pictures": len(labels),
        "mean_abs": float(beside.mean()),
        "max_abs": float(beside.max()),
        "mean_logits_abs": float(finite.mean()) if finite.size else None,
    }


def _by_networks(folder: Path, report: Report, artifacts: Path, arrays: Arrays, console: Console) -> Row:
    """Compute features and DHKD's heads, which need the networks and the validation images of the cache."""
    from compress.pipeline.run_folder import cache_refs

    try:
        kept = cache_refs.read(folder, artifacts, command=report.command)
    except MissingError as error:
        return {"features": {"sentence": f"Features and heads are left out: {error}"}, "heads": []}
    from compress.commands.analyze import features
    from compress.training import build

    images = build.load_images(kept.data, "cpu")
    found = features.heads(kept, images)
    rows = []
    for number, (what, logits) in enumerate(
        (("classifier", found.classifier), ("auxiliary head", found.auxiliary)) if found else (), 1
    ):
        assert found is not None
        rows.append(_correlated(what, logits, found.teacher, found.labels, "validation", arrays, number))
    return {"features": _features(kept, images, arrays, console), "heads": rows}


def _features(kept: Any, images: Any, arrays: Arrays, console: Console) -> Row:
    """Lay out both networks' pooled vectors by t-SNE."""
    from compress.commands.analyze import features

    drawn = features.draw(images, len(kept.data.classes), SEED)
    names = [kept.data.classes[index] for index in drawn.classes]
    content: Row = {
        "pictures": len(drawn.index),
        "classes": names,
        "of_classes": len(kept.data.classes),
        "perplexity": features.PERPLEXITY,
        "neighbours": features.NEIGHBOURS,
        "networks": [],
        "sentence": None,
    }
    said = []
    for role, one in (("teacher", kept.teacher), ("student", kept.student.trained)):
        if (reason := features.unavailable_reason(one.network)) is not None:
            said.append(reason)
            continue
        vectors = features.pooled(one.network, one.weights, images, drawn.index)
        near = features.same_class_neighbours(vectors, drawn.labels)
        content["networks"].append(
            {"role": role, "model": one.network.model, "width": vectors.shape[1], "same_class_neighbours": near}
        )
        console.line(f"t-SNE: {one.network.model}, {len(vectors):,} vectors of {vectors.shape[1]} features")
        try:
            arrays[f"features_{role}"] = features.plane(vectors, SEED)
        except ImportError:
            said = [f"t-SNE needs scikit-learn, which is not installed; install it with: {INSTALL}"]
            break
    arrays["features_labels"] = drawn.labels
    content["sentence"] = " ".join(said) or None
    return content


def _against(folder: Path, others: Sequence[Path], arrays: Arrays) -> list[Row]:
    """Return the training curves of this run's student and of the other runs'; empty without others."""
    if not others:
        return []
    rows = []
    for number, one in enumerate((folder, *others)):
        if number and one.resolve() == folder.resolve():
            raise UsageError(f"--against {one}: this is the run itself; name another one")
        report = read_report(one)
        curve = next((curve for curve in curves_of(one) if curve.name == "student"), None)
        if curve is None:
            raise StageError(
                f"{one / 'history' / 'student.csv'}: no training curve here; make the run again: {report.command}"
            )
        task = next(iter(curve.losses.values()), np.full_like(curve.epoch, np.nan))
        top1 = curve.top1 if curve.top1 is not None else np.full_like(curve.epoch, np.nan)
        parts = {"epoch": curve.epoch, "top1": top1, "task": task, **curve.cosines}
        arrays |= {f"against_{number}_{name}": values for name, values in parts.items()}
        rows.append(
            {
                "recipe": report.recipe,
                "run": one.resolve().name,
                "method": report.student.method,
                "loss": next(iter(curve.losses), None),
                "top1_validation": float(top1[-1]) if np.isfinite(top1[-1]) else None,
                "cosines": sorted(curve.cosines),
            }
        )
    return rows
