"""The final validation: every model on the whole test split in onnxruntime, its latency, its memory, and the bundle for the device.

The only stage that reads the test split.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import export.audit
import export.bundle
import export.measure
from compress import statistics
from compress.data import stratified, test_arrays
from compress.errors import StageError
from compress.results import File, Measured, ModelFile, TestData
from compress.schema import Validate
from compress.store import Context, Stage
from export.measure import LatencyResult
from export.runtime import ExportError, Model, cores, isa, runs_on

SHOWN = 24  # pictures in the report that the student gets wrong and the teacher right
BATCH = 50


def _run(
    config: Validate, *, context: Context, models: tuple[ModelFile, ...], samples: int, test: TestData, host: dict[str, Any], versions: dict[str, str]
) -> Measured:
    """Accuracy, latency, memory and size of each file; `models` begins with the teacher, the reference of every comparison.

    `samples` test pictures go into the bundle. `host` and `versions` are part of the key: a latency never crosses machines.
    """
    images, labels = test_arrays(test)
    try:
        logits = {model.name: _predict(model, images, context) for model in models}
        context.console.line(f"latency: {len(models)} models interleaved, {config.repeats} runs each, {config.threads} thread(s), batch 1")
        here = [model for model in models if runs_on(model.target, isa())]
        timed = export.measure.latency(
            {model.name: model.file.path for model in here}, images[:64], threads=config.threads, warmup=config.warmup, repeats=config.repeats, seed=config.seed
        )
        rows = tuple(_row(model, logits, labels, models[0].name, timed, config) for model in models)
        bundle = _bundle(context.work, models, images, labels, samples, config.seed)
    except ExportError as error:
        raise StageError(f"validate: {error}") from error
    comparisons = tuple(
        _compare(model, against, logits, labels, timed, config.seed) for model in models[1:] for against in models if _compared(model, against)
    )
    shipped = _shipped(models)
    return Measured(
        models=rows,
        comparisons=comparisons,
        per_class=_per_class(labels, logits[models[0].name], logits[shipped.name], test.classes),
        latency={"contaminated": timed.contaminated, "other_cores": timed.other_cores},
        warnings=_warnings(timed),
        predictions=_save(context.work / "predictions.npz", _predictions(images, labels, logits)),
        latency_samples=_save(context.work / "latency.npz", {name: np.asarray(one.samples_ms, np.float64) for name, one in timed.models.items()}),
        pictures=_save(context.work / "pictures.npz", _mistakes(images, labels, logits[models[0].name], logits[shipped.name])),
        bundle=bundle,
    )


def _shipped(models: tuple[ModelFile, ...]) -> ModelFile:
    """The student's file that ships: int8 where there is one."""
    students = [model for model in models if model.role == "student"]
    return next((model for model in students if model.precision == "int8"), students[0])


def _compared(model: ModelFile, against: ModelFile) -> bool:
    """Every model against the teacher; int8 against its own float file; the student against the baseline of the same precision."""
    if against.role == "teacher":
        return True
    if model.role == against.role:
        return model.precision == "int8" and against.precision == "fp32"
    return model.role == "student" and against.role == "baseline" and model.precision == against.precision


def _predict(model: ModelFile, images: np.ndarray, context: Context) -> np.ndarray:
    """Logits float32 (N, K) of the whole test split, on all cores (answers do not depend on threads; latency is measured apart)."""
    context.console.line(f"test split: {model.name} on {len(images):,} pictures")
    return Model.load(model.file.path, threads=cores()).run(images, batch=BATCH)


def _row(model: ModelFile, logits: dict[str, np.ndarray], labels: np.ndarray, teacher: str, timing: LatencyResult, config: Validate) -> dict[str, Any]:
    """report.json's row of a model; a file for another instruction set is neither timed nor audited here."""
    timed = timing.models.get(model.name)
    own = logits[model.name]
    correct = int((own.argmax(axis=1) == labels).sum())
    audit = export.audit.audit(model.file.path, threads=config.threads) if timed else None
    return {
        "role": model.role,
        "precision": model.precision,
        "file": model.name,
        "sha256": model.file.sha256,
        "bytes": model.file.bytes,
        "images": len(labels),
        "top1": correct / len(labels),
        "top1_ci95": list(statistics.wilson(correct, len(labels))),
        "top5": float(statistics.top_k_correct(own, labels, 5).mean()) if own.shape[1] >= 5 else None,
        "agreement_with_teacher": float((own.argmax(axis=1) == logits[teacher].argmax(axis=1)).mean()),
        "max_abs_diff_from_torch": model.max_abs_diff_from_torch,
        "latency_ms": _latency(timing, model.name, config.seed) if timed else None,
        "first_run_ms": timed.first_run_ms if timed else None,
        "load_ms": timed.load_ms if timed else None,
        "peak_memory_bytes": export.measure.memory(model.file.path, threads=config.threads) if timed else None,
        "int8_mac_share": audit.int8_mac_share if audit else None,
        "islands": [f"{name} ({op})" for name, op in audit.islands] if audit and model.precision == "int8" else None,
        "target": model.target,
    }


def _latency(timing: LatencyResult, name: str, seed: int) -> dict[str, Any]:
    timed = timing.models[name]
    return {**timed.summary(), "p50_ci95": list(export.measure.p50_interval(timing, name, seed=seed)[1:])}


def _compare(model: ModelFile, against: ModelFile, logits: dict[str, np.ndarray], labels: np.ndarray, timing: LatencyResult, seed: int) -> dict[str, Any]:
    """report.json's paired comparison of two models on the same pictures."""
    right = {name: logits[name].argmax(axis=1) == labels for name in (model.name, against.name)}
    drop = statistics.paired_drop(right[against.name], right[model.name])
    both = model.name in timing.models and against.name in timing.models
    speedup, low, high = export.measure.ratio(timing, against.name, model.name, seed=seed) if both else (None, None, None)
    return {
        "model": model.name,
        "against": against.name,
        "top1_drop_points": drop.drop_points,
        "top1_drop_ci95": [drop.low, drop.high],
        "mcnemar_p": drop.p,
        "images": drop.n,
        "lost": drop.lost,
        "gained": drop.gained,
        "speedup_p50": speedup,
        "speedup_ci95": [low, high] if both else None,
        "size_ratio": against.file.bytes / model.file.bytes,
    }


def _per_class(labels: np.ndarray, teacher: np.ndarray, student: np.ndarray, classes: tuple[str, ...]) -> tuple[dict[str, Any], ...]:
    changes = statistics.per_class(labels, teacher.argmax(axis=1) == labels, student.argmax(axis=1) == labels, len(classes))
    return tuple({"class": classes[c.index], "n": c.n, "teacher": c.reference, "student": c.model, "lost": c.lost, "gained": c.gained} for c in changes)


def _warnings(timing: LatencyResult) -> tuple[str, ...]:
    if not timing.contaminated:
        return ()
    return (f"other processes used {timing.other_cores:.2f} cores while latency was measured; ratios are from interleaved rounds, absolute times are not",)


def _predictions(images: np.ndarray, labels: np.ndarray, logits: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Per test picture: content hash, label, logits of every model, so that anyone can recompute every interval."""
    hashes = np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in images])
    return {"sha256": hashes, "labels": labels, **{f"logits/{name}": value.astype(np.float32) for name, value in logits.items()}}


def _bundle(work: Path, models: tuple[ModelFile, ...], images: np.ndarray, labels: np.ndarray, samples: int, seed: int) -> File:
    """The folder for the device: teacher and student with a stratified sample of test pictures. Only the student's files need to ship."""
    with tempfile.TemporaryDirectory() as temporary:
        shipped = []
        for model in models:
            if model.role != "baseline":  # the baseline is evidence, not a product
                named = Path(temporary) / model.name
                shutil.copyfile(model.file.path, named)
                shipped.append(export.bundle.Shipped(named, model.role, model.precision, model.target))
        chosen = stratified(labels, min(samples, len(labels)), seed)
        written = export.bundle.write(work / "bundle", shipped, images[chosen], labels[chosen], title=_shipped(models).name)
    return File.of(written.archive)


def _mistakes(images: np.ndarray, labels: np.ndarray, teacher: np.ndarray, student: np.ndarray) -> dict[str, np.ndarray]:
    """Pictures that the student gets wrong and the teacher right, the student's surest mistakes first."""
    wrong = np.flatnonzero((teacher.argmax(axis=1) == labels) & (student.argmax(axis=1) != labels))
    gap = student[wrong].max(axis=1) - student[wrong, labels[wrong]]
    chosen = wrong[np.argsort(-gap, kind="stable")][:SHOWN]
    return {
        "images": images[chosen],
        "labels": labels[chosen],
        "teacher": teacher[chosen].argmax(axis=1),
        "student": student[chosen].argmax(axis=1),
        "index": chosen,
        "total": np.array(len(wrong)),
    }


def _save(path: Path, arrays: dict[str, np.ndarray]) -> File:
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return File.of(path)


run = Stage("validate", 1, _run, Measured)
