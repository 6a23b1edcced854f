"""The final validation on the test split: every file's accuracy, latency and memory, and the bundle for the device.

No earlier stage receives the test split; `settle` reads it again to draw the report.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import export.runtime.sustained
from compress.core.errors import StageError
from compress.core.records.base import File
from compress.core.records.deployment import Measured, ModelFile
from compress.core.records.training import TestData
from compress.core.store import Context, Stage
from compress.data import load_groups, test_arrays
from compress.recipe.schema import Validate
from compress.stages.support import latency
from compress.stages.support.device_bundle import write_bundle
from compress.stages.support.model_rows import (
    Groups,
    Logits,
    comparison_row,
    int8_warnings,
    latency_arrays,
    model_row,
    prediction_arrays,
)
from compress.stages.support.ship_choice import bundled, choose_shipped, is_compared
from compress.verdict import clusters, slices
from export.runtime import ExportError, Model, cores, isa, runs_on, saturates
from export.runtime.latency_stats import LatencyResult

BATCH = 50
TIMED_IMAGES = 64  # inputs of the timed runs, taken in turn


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
    synthetic: bool = False,
) -> Measured:
    """Measure accuracy, latency, memory and size of each file.

    Args:
        config: The recipe's `validate` section.
        context: Of the stage.
        models: The files; the first is the teacher's, with which all are compared.
        samples: Number of test images in the bundle.
        test: The test split.
        host: This machine; part of the key, because a latency never crosses machines.
        versions: Versions of torch, onnx and onnxruntime; part of the key.
        photos: Image files of the data set, for the time from photo to answer.
        resize: The short side to which a photo is resized before its centre is cut out; None: the images' side.
        keep: With `faster`, int8 that is not measurably faster than float does not ship.
        own: The user's photos, which go into the bundle as they are.
        synthetic: Whether the bundle holds drawn images instead of the user's.
    """
    images, labels = test_arrays(test)
    groups = None if test.groups is None else clusters.numbered(load_groups(test.groups))
    try:
        logits = {model.name: _predict(model, images, context) for model in models}
        timed, photo, source = _time(config, context, models, images, photos, resize)
        rows = tuple(
            {
                **model_row(model, logits, labels, models[0].name, timed, config, groups),
                "photo_latency_ms": latency.entry(photo, model.name, config.seed),
            }
            for model in models
        )
        shipped, because = choose_shipped(models, timed, keep, config.seed)
        if because:
            context.console.line(because)
        sustained = _sustained(shipped, images, config, context, timed)
        bundle = write_bundle(
            context,
            bundled(models, shipped),
            images,
            labels,
            samples=samples,
            seed=config.seed,
            resize=resize,
            own=own,
            synthetic=synthetic,
        )
    except ExportError as error:
        raise StageError(f"validate: {error}") from error
    comparisons = _comparisons(models, logits, labels, timed, config.seed, groups)
    changes = _changes(models, shipped, images, labels, logits, test.classes, groups)
    return Measured(
        models=rows,
        comparisons=comparisons,
        per_class=changes.per_class,
        latency={**timed.conditions(), "photo": latency.photo_conditions(photo, source), "sustained": sustained},
        warnings=(*latency.warnings(timed, sustained), *int8_warnings(models, comparisons)),
        predictions=_save(context.work / "predictions.npz", prediction_arrays(images, labels, logits)),
        latency_samples=_save(context.work / "latency.npz", latency_arrays(timed)),
        gallery=_save(context.work / "pictures.npz", changes.images),
        bundle=bundle,
        ships=shipped.name,
        ships_because=because,
        slices=changes.unsure,
    )


def _predict(model: ModelFile, images: NDArray[np.uint8], context: Context) -> NDArray[np.floating[Any]]:
    """Return logits float32 (N, K) of the whole test split.

    It runs on all cores: answers do not depend on threads, and latency is measured apart. A file whose sums this
    machine's kernels would saturate is computed as it is written.
    """
    context.console.line(f"test split: {model.name} on {len(images):,} images")
    loaded = Model.load(model.file.path, threads=cores(), as_written=saturates(model.target, isa()))
    return loaded.run(images, batch=BATCH)


def _time(
    config: Validate,
    context: Context,
    models: tuple[ModelFile, ...],
    images: NDArray[np.uint8],
    photos: tuple[File, ...],
    resize: int | None,
) -> tuple[LatencyResult, LatencyResult, str]:
    """Time the files that this machine can run: inference, from photo to answer, and what the photos were."""
    context.console.line(
        f"latency: {len(models)} models interleaved, {config.repeats} runs each, {config.threads} thread(s), batch 1"
    )
    here = [model for model in models if runs_on(model.target, isa())]
    timed = latency.inference(
        {model.name: model.file for model in here},
        images[:TIMED_IMAGES],
        threads=config.threads,
        warmup=config.warmup,
        repeats=config.repeats,
        seed=config.seed,
    )
    shown = {model.name: model.file for model in here if not model.comparison_only}
    photo, source = latency.photos_to_answers(
        shown, photos, images, resize=resize, threads=config.threads, repeats=config.repeats, seed=config.seed
    )
    return timed, photo, source


def _sustained(
    model: ModelFile, images: NDArray[np.uint8], config: Validate, context: Context, times: LatencyResult
) -> dict[str, Any] | None:
    """Run the file that ships without a pause, if the recipe asks for it and this machine can run the file."""
    if not config.sustained_seconds or model.name not in times.models:
        return None
    context.console.line(f"latency: {model.name} without a pause for {config.sustained_seconds} s")
    found = export.runtime.sustained.sustained(
        model.file.path, images[:TIMED_IMAGES], config.sustained_seconds, threads=config.threads
    )
    context.console.line(found.sentence())
    return {"file": model.name, **found.summary()}


def _comparisons(
    models: tuple[ModelFile, ...],
    logits: Logits,
    labels: NDArray[np.integer[Any]],
    timed: LatencyResult,
    seed: int,
    groups: Groups | None,
) -> tuple[dict[str, Any], ...]:
    return tuple(
        comparison_row(model, against, logits, labels, timed, seed, groups)
        for model in models[1:]
        for against in models
        if is_compared(model, against)
    )


def _changes(
    models: tuple[ModelFile, ...],
    shipped: ModelFile,
    images: NDArray[np.uint8],
    labels: NDArray[np.integer[Any]],
    logits: Logits,
    classes: tuple[str, ...],
    groups: Groups | None,
) -> slices.Changes:
    """Compare the file that ships with the teacher, class by class."""
    floats = (model for model in models if model.role == "student" and model.precision == "fp32")
    other = next((model.name for model in floats if model is not shipped), None)
    return slices.changes(
        images,
        labels,
        dict(logits),
        teacher=models[0].name,
        model=shipped.name,
        floats=other,
        classes=classes,
        groups=groups,
    )


def _save(path: Path, arrays: dict[str, NDArray[Any]]) -> File:
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return File.of(path)


VALIDATE = Stage("validate", 8, run_validate, Measured)
