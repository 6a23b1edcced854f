"""The final validation: every model on the whole test split in onnxruntime, its latency, its memory, and the bundle for the device.

The only stage that reads the test split.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import export.bundle.write
import export.graph.executed
import export.runtime.latency
import export.runtime.latency_stats
import export.runtime.sustained
from compress.core.errors import StageError
from compress.core.records.base import File
from compress.core.records.deployment import Measured, ModelFile
from compress.core.records.training import TestData
from compress.core.store import Context, Stage
from compress.data import stratified, test_arrays
from compress.recipe.schema import Validate
from compress.stages.support import latency
from compress.verdict import diagnosis, intervals, slices
from export.runtime import ExportError, Model, copy_model, cores, isa, runs_on, saturates
from export.runtime.latency_stats import LatencyResult

BATCH = 50
OWN_BYTES = 20_000_000  # of the user's photos in the bundle


def run_validate(
    config: Validate,
    *,
    context: Context,
    models: tuple[ModelFile, ...],
    samples: int,
    test: TestData,
    host: dict[str, Any],
    versions: dict[str, str],
    photos: tuple[File, ...] = (),
    resize: int | None = None,
    keep: str = "always",
    own: tuple[File, ...] = (),
) -> Measured:
    """Accuracy, latency, memory and size of each file; `models` begins with the teacher, the reference of every comparison.

    `samples` test pictures go into the bundle. `photos`: picture files of the data set, for the time from photo to answer.
    `resize`: what a photo's short side is resized to before its centre is cut out; None: the pictures' own side.
    `own`: picture files that go into the bundle as they are.
    `keep` faster: int8 that is not measurably faster than float does not ship.
    `host` and `versions` are part of the key: a latency never crosses machines.
    """
    images, labels = test_arrays(test)
    try:
        logits = {model.name: _predict(model, images, context) for model in models}
        context.console.line(
            f"latency: {len(models)} models interleaved, {config.repeats} runs each, {config.threads} thread(s), batch 1"
        )
        here = [model for model in models if runs_on(model.target, isa())]
        timed = latency.inference(
            {model.name: model.file for model in here},
            images[:64],
            threads=config.threads,
            warmup=config.warmup,
            repeats=config.repeats,
            seed=config.seed,
        )
        shown = {model.name: model.file for model in here if not model.comparison_only}
        photo, source = latency.photos_to_answers(
            shown, photos, images, resize=resize, threads=config.threads, repeats=config.repeats, seed=config.seed
        )
        rows = tuple(
            {
                **_row(model, logits, labels, models[0].name, timed, config),
                "photo_latency_ms": latency.entry(photo, model.name, config.seed),
            }
            for model in models
        )
        shipped, because = _ships(models, timed, keep, config.seed)
        if because:
            context.console.line(because)
        sustained = _sustained(shipped, images, config, context, timed)
        bundle = _bundle(
            context,
            _in_bundle(models, shipped),
            images,
            labels,
            samples,
            config.seed,
            resize,
            [file.path for file in _within(own)],
        )
    except ExportError as error:
        raise StageError(f"validate: {error}") from error
    comparisons = tuple(
        _compare(model, against, logits, labels, timed, config.seed)
        for model in models[1:]
        for against in models
        if _compared(model, against)
    )
    floats = next(
        (
            model.name
            for model in models
            if model.role == "student" and model.precision == "fp32" and model is not shipped
        ),
        None,
    )
    changes = slices.changes(
        images, labels, logits, teacher=models[0].name, model=shipped.name, floats=floats, classes=test.classes
    )
    return Measured(
        models=rows,
        comparisons=comparisons,
        per_class=changes.per_class,
        latency={**timed.conditions(), "photo": latency.photo_conditions(photo, source), "sustained": sustained},
        warnings=(*latency.warnings(timed, sustained), *_int8_warnings(models, comparisons)),
        predictions=_save(context.work / "predictions.npz", _predictions(images, labels, logits)),
        latency_samples=_save(context.work / "latency.npz", _samples(timed)),
        gallery=_save(context.work / "pictures.npz", changes.images),
        bundle=bundle,
        ships=shipped.name,
        ships_because=because,
        slices=changes.unsure,
    )


def _shipped(models: tuple[ModelFile, ...]) -> ModelFile:
    """The student's file that ships: int8 where there is one, of several the device's, which comes first."""
    students = [model for model in models if model.role == "student"]
    return next((model for model in students if model.precision == "int8"), students[0])


def _int8_warnings(models: tuple[ModelFile, ...], comparisons: tuple[dict[str, Any], ...]) -> tuple[str, ...]:
    """What is known to ruin int8, where the student's int8 file is worse than its float file beyond chance."""
    files = {model.name: model for model in models if model.role == "student"}
    pairs = [
        row for row in comparisons if row["model"] in files and row["against"] in files and row["top1_drop_ci95"][0] > 0
    ]
    named = ((row, diagnosis.name_int8_fault(files[row["model"]].file.path)) for row in pairs)
    return tuple(
        f"{row['model']} is {row['top1_drop_points']:.1f} points below {row['against']}: {fault}"
        for row, fault in named
        if fault
    )


def _ships(models: tuple[ModelFile, ...], times: LatencyResult, keep: str, seed: int) -> tuple[ModelFile, str | None]:
    """The file that ships, and what `keep: faster` decided, in one sentence (None: nothing to decide)."""
    best = _shipped(models)
    plain = next(model for model in models if model.role == "student" and model.precision == "fp32")
    if keep != "faster" or best is plain:
        return best, None
    if best.name not in times.models:
        return (
            best,
            f"{best.name} ships although keep: faster was asked for: it is built for {best.target}, so its speed could not be judged here.",
        )
    if times.unfit is not None:
        return (
            best,
            f"{best.name} ships although keep: faster was asked for: its speed could not be judged here ({times.unfit}).",
        )
    speedup, low, high = export.runtime.latency_stats.ratio(times, plain.name, best.name, seed=seed)
    numbers = f"{speedup:.2f}x [{low:.2f}, {high:.2f}] its speed"
    if low > 1:
        return best, f"{best.name} ships: it is faster than the float student here ({numbers}), as keep: faster asks."
    return (
        plain,
        f"{plain.name} ships instead of {best.name}: int8 is not measurably faster than the float student here ({numbers}; keep: faster).",
    )


def _in_bundle(models: tuple[ModelFile, ...], shipped: ModelFile) -> tuple[ModelFile, ...]:
    """All but the student's int8 file for the device where the float file ships instead."""
    best = _shipped(models)
    return tuple(model for model in models if model is not best or model is shipped or model.precision == "fp32")


def _compared(model: ModelFile, against: ModelFile) -> bool:
    """Every model against the teacher; int8 against its own float file; the student against the baseline of the same precision; the tuned
    int8 file against the static one for the same processor, and that against the float student."""
    if against.role == "teacher":
        return True
    if model.role == "static":
        return against.role == "student" and against.precision == "fp32"
    if against.role == "static":
        return model.role == "student" and (model.precision, model.target) == (against.precision, against.target)
    if model.role == against.role:
        return model.precision == "int8" and against.precision == "fp32"
    return (
        model.role == "student"
        and against.role == "baseline"
        and (model.precision, model.target) == (against.precision, against.target)
    )


def _predict(model: ModelFile, images: np.ndarray, context: Context) -> np.ndarray:
    """Logits float32 (N, K) of the whole test split, on all cores (answers do not depend on threads; latency is measured apart). A file whose
    sums this machine's kernels would saturate is computed as it is written."""
    context.console.line(f"test split: {model.name} on {len(images):,} pictures")
    return Model.load(model.file.path, threads=cores(), as_written=saturates(model.target, isa())).run(
        images, batch=BATCH
    )


def _row(
    model: ModelFile,
    logits: dict[str, np.ndarray],
    labels: np.ndarray,
    teacher: str,
    times: LatencyResult,
    config: Validate,
) -> dict[str, Any]:
    """report.json's row of a model; a file for another instruction set is neither timed nor audited here."""
    timed = times.models.get(model.name)
    own = logits[model.name]
    correct = int((own.argmax(axis=1) == labels).sum())
    foreign = model.contract is not None  # another project's nodes may have no names, and its weights may be computed
    audit = export.graph.executed.audit(model.file.path, threads=config.threads) if timed and not foreign else None
    by = "as it is written" if saturates(model.target, isa()) else "by this machine's kernels"
    return {
        "role": "student" if model.role == "static" else model.role,
        "variant": "static" if model.role == "static" else None,
        "precision": model.precision,
        "file": model.name,
        "sha256": model.file.sha256,
        "bytes": model.file.bytes,
        "images": len(labels),
        "top1": correct / len(labels),
        "top1_ci95": list(intervals.wilson(correct, len(labels))),
        "top5": float(intervals.top_k_correct(own, labels, 5).mean()) if own.shape[1] >= 5 else None,
        "agreement_with_teacher": float((own.argmax(axis=1) == logits[teacher].argmax(axis=1)).mean()),
        "max_abs_diff_from_torch": model.max_abs_diff_from_torch,
        "latency_ms": latency.entry(times, model.name, config.seed),
        "first_run_ms": timed.first_run_ms if timed else None,
        "load_ms": timed.load_ms if timed else None,
        "peak_memory_bytes": export.runtime.latency.memory(model.file.path, threads=config.threads) if timed else None,
        "int8_mac_share": audit.int8_mac_share if audit else None,
        "islands": [f"{name} ({op})" for name, op in audit.islands] if audit and model.precision == "int8" else None,
        "island_causes": audit.causes_counted() if audit and model.precision == "int8" else None,
        "requantised": list(audit.requantised) if audit and model.precision == "int8" else None,
        "target": model.target,
        "note": None if timed else f"built for {model.target}, this machine is {isa()}: answers {by}, not timed",
    }


def _sustained(
    model: ModelFile, images: np.ndarray, config: Validate, context: Context, times: LatencyResult
) -> dict[str, Any] | None:
    """The file that ships, run without a pause where the recipe asks for it and it is meant for this machine."""
    if not config.sustained_seconds or model.name not in times.models:
        return None
    context.console.line(f"latency: {model.name} without a pause for {config.sustained_seconds} s")
    found = export.runtime.sustained.sustained(
        model.file.path, images[:64], config.sustained_seconds, threads=config.threads
    )
    context.console.line(found.sentence())
    return {"file": model.name, **found.summary()}


def _compare(
    model: ModelFile,
    against: ModelFile,
    logits: dict[str, np.ndarray],
    labels: np.ndarray,
    times: LatencyResult,
    seed: int,
) -> dict[str, Any]:
    """report.json's paired comparison of two models on the same pictures."""
    right = {name: logits[name].argmax(axis=1) == labels for name in (model.name, against.name)}
    drop = intervals.paired_drop(right[against.name], right[model.name])
    both = model.name in times.models and against.name in times.models
    speedup, low, high = (
        export.runtime.latency_stats.ratio(times, against.name, model.name, seed=seed) if both else (None, None, None)
    )
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


def _predictions(images: np.ndarray, labels: np.ndarray, logits: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Per test picture: content hash, label, logits of every model, so that anyone can recompute every interval."""
    hashes = np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in images])
    return {
        "sha256": hashes,
        "labels": labels,
        **{f"logits/{name}": value.astype(np.float32) for name, value in logits.items()},
    }


def _samples(timed: LatencyResult) -> dict[str, np.ndarray]:
    """Each file's times, and the round of each: a ratio is within rounds."""
    times = {name: np.asarray(one.samples_ms, np.float64) for name, one in timed.models.items()}
    return {**times, **{f"rounds/{name}": np.asarray(one.rounds, np.int64) for name, one in timed.models.items()}}


def _within(own: tuple[File, ...], most: int = OWN_BYTES) -> list[File]:
    """The photos, in order, that fit into so many bytes."""
    kept: list[File] = []
    for file in own:
        if file.bytes + sum(one.bytes for one in kept) <= most:
            kept.append(file)
    return kept


def _bundle(
    context: Context,
    models: tuple[ModelFile, ...],
    images: np.ndarray,
    labels: np.ndarray,
    samples: int,
    seed: int,
    resize: int | None,
    own: list[Path],
) -> File:
    """The folder for the device: teacher and student with a stratified sample of test pictures. Only the student's files need to ship."""
    with tempfile.TemporaryDirectory() as temporary:
        shipped = []
        for model in models:
            if not model.comparison_only:
                named = Path(temporary) / model.name
                copy_model(model.file.path, named)
                shipped.append(export.bundle.write.Shipped(named, model.role, model.precision, model.target))
        chosen = stratified(labels, min(samples, len(labels)), seed)
        side = resize or images.shape[1]
        if own:
            context.console.line(
                f"bundle: {len(own)} of your photos go along as they are, metadata included (device.photos: 0 leaves them out)"
            )
        title = _shipped(models).name
        written = export.bundle.write.write(
            context.work / "bundle", shipped, images[chosen], labels[chosen], title=title, resize=side, own_photos=own
        )
    return File.of(written.archive)


def _save(path: Path, arrays: dict[str, np.ndarray]) -> File:
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return File.of(path)


VALIDATE = Stage("validate", 7, run_validate, Measured)
