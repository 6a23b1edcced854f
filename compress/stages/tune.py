"""Quantisation-aware distillation: the student trains further as its int8 file will compute it, by the same method and teacher.

What is trained is the graph that deploys: BatchNorms folded, rewritten for integers, fake quantisation where the quantiser puts its pairs.
Its weights and ranges then go through the same quantiser as calibrated ones, and the file is held against the simulation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import nn

import export.int8.quantize
import export.int8.search
from compress.core.errors import StageError
from compress.core.records.base import File
from compress.core.records.deployment import Exported, Tuned
from compress.core.records.training import CalibrationData, Distilled, Stripped, Trained
from compress.core.store import Context, Stage
from compress.data import calibration_arrays
from compress.data.augment import views
from compress.methods import Method, build_method
from compress.models import checkpoints
from compress.models.taps import Tapped
from compress.recipe.schema import Distill, ResolvedQat, ResolvedSchedule, ResolvedTrain
from compress.training import build, checkpoint
from compress.training.distill import log_teacher_cost
from compress.training.evaluation import ImageSet, accuracy, predict
from compress.training.loop import fit
from compress.training.step import TeacherSource
from export.int8.qat.model import Simulation
from export.int8.quantize import PreparedGraph, QuantizeSettings
from export.runtime import ExportError

LEAST_AGREEMENT = 0.98  # of the predictions of simulation and file; they differ where a sum ends between two levels
CHECKED = 1000  # validation pictures that both are held against each other on
PROBE = 8  # pictures that the method's taps are found by
TAP_LIMIT = 1e-3  # largest difference of a tap in the two graphs, of its largest value


def run_tune(
    config: ResolvedQat,
    *,
    context: Context,
    method: Distill,
    trained: Distilled,
    stripped: Stripped,
    model: Exported,
    teacher: Trained | None,
    data: CalibrationData,
    train: ResolvedTrain,
    target: str,
    versions: dict[str, str],
) -> Tuned:
    """Train the exported student further with fake quantisation for `target`.

    `method`, `train`: what the student was distilled by; `trained` holds the method's own modules, which go on where they were.
    """
    images, _ = calibration_arrays(data)
    settings = QuantizeSettings(target, config.per_channel, config.calibrate, config.percentile, config.float_layers)
    pictures, live = build.load_images(data.training, context.device), _student(stripped)
    own = train.model_copy(
        update={
            "epochs": config.epochs,
            "lr": config.lr,
            "schedule": ResolvedSchedule(),
            "precision": "float32",
            "keep": "last",
        }
    )
    teaching_method, teaching = _taught(method, trained, live, teacher, pictures, data, own, context)
    try:
        prepared = export.int8.quantize.prepare(
            (model.int8_source or model.file).path, images, cache=context.cache / "calibration"
        )
        shown = _tensors(teaching_method.student_taps, stripped.trained, live, prepared, pictures)
        pairs = export.int8.quantize.insert_qdq(prepared, settings)
        simulation = Simulation(pairs.model, pairs, shown=shown).to(context.device)
    except ExportError as error:
        raise StageError(f"tune: {error}") from error
    static = _accuracy(simulation, stripped.trained, pictures)
    steps = -(-len(pictures.train_index) // train.batch_size)
    with context.console.training(
        f"int8 of {stripped.trained.network.model} by {method.name}", own.epochs, steps
    ) as progress:
        fitted = fit(
            simulation,
            teaching_method,
            pictures,
            train=own,
            normalization=stripped.trained.network.normalization,
            taps={name: f"taps.{name}:out" for name in shown},
            teacher=teaching,
            device=context.device,
            folder=context.work,
            progress=progress,
            epochs_before=trained.epochs,
        )
    try:
        agreement, difference = _hold_against_file(
            simulation.cpu().eval(), prepared, settings, stripped.trained, data, context.work / "check.onnx"
        )
    except ExportError as error:
        raise StageError(f"tune: {error}") from error
    weights, ranges = context.work / "tuned.safetensors", context.work / "ranges.json"
    weights.write_bytes(
        save(
            {name: torch.from_numpy(value) for name, value in simulation.learned_weights().items()},
            metadata={"format": "pt"},
        )
    )
    ranges.write_text(json.dumps(simulation.learned_ranges(), indent=1) + "\n")
    if sentence := worse(static, fitted.history[-1].get("top1_validation", static)):
        context.console.warn(sentence)
    return Tuned(
        target=target,
        weights=File.of(weights),
        ranges=File.of(ranges),
        history=File.of(context.work / checkpoint.HISTORY),
        epochs=len(fitted.history),
        lr=own.lr,
        top1_float=stripped.trained.top1_validation,
        top1_static=static,
        top1_validation=fitted.history[-1].get("top1_validation", static),
        agreement=agreement,
        mean_abs_diff=difference,
        seconds=round(fitted.seconds, 2),
        images_per_second=round(fitted.images_per_second, 1),
        threads=fitted.threads,
    )


def worse(static: float, tuned: float) -> str | None:
    """A sentence where training for int8 lost what it should win."""
    if tuned >= static:
        return None
    return (
        f"tuning made it worse: {100 * tuned:.2f} % on validation pictures, static int8 of the same student has {100 * static:.2f} %; "
        "lower quantize.lr, or use quantize.scheme: static"
    )


def _student(stripped: Stripped) -> nn.Module:
    """The float student in torch, which the method's taps are named in."""
    if stripped.trained.network.deployed is not None:
        raise StageError(
            "tune: the method ships another network than it compares with the teacher, so its loss cannot go on; use quantize.scheme: static"
        )
    return build.load_network(stripped.trained.network, stripped.trained.weights, "cpu").eval()


def _taught(
    config: Distill,
    trained: Distilled,
    live: nn.Module,
    teacher: Trained | None,
    pictures: ImageSet,
    data: CalibrationData,
    train: ResolvedTrain,
    context: Context,
) -> tuple[Method, TeacherSource | None]:
    """The method with its own modules as distillation left them, and what it is taught by."""
    state = {
        name.removeprefix("method."): value
        for name, value in load_file(trained.combined.path).items()
        if name.startswith("method.")
    }
    taught_by = (
        build.outline_of(teacher.network, build.load_network(teacher.network, teacher.weights, "cpu"))
        if teacher
        else None
    )
    method = build_method(
        config,
        student=build.outline_of(trained.network, live),
        teacher=taught_by,
        train_labels=pictures.labels,
        train_index=pictures.train_index,
        label_smoothing=train.label_smoothing,
        seed=train.seed,
    )
    checkpoints.load_state(method, state, source="distill")
    method.to(context.device)
    if teacher is None or taught_by is None or not method.needs_teacher:
        return method, None
    teaching = build.teacher_source(
        teacher,
        method,
        taught_by.taps,
        data.training,
        len(pictures.images),
        device=context.device,
        cache=context.cache,
        warn=context.console.warn,
    )
    log_teacher_cost(teaching, teacher, config.name, data.training, len(pictures.train_index), train, context)
    return method, teaching


@torch.no_grad()
def _tensors(
    wanted: tuple[str, ...], student: Trained, live: nn.Module, prepared: PreparedGraph, pictures: ImageSet
) -> dict[str, str]:
    """For each tap the graph's tensor with the same values on a few pictures. Raises StageError where there is none."""
    if not wanted:
        return {}
    size, normalization = student.network.image_size, student.network.normalization
    raw = views.evaluation_view(pictures.images[pictures.train_index[:PROBE]].cpu(), size)
    pixels = views.to_float(raw, normalization.mean, normalization.std)
    taps = build.outline_of(student.network, live).taps
    with Tapped(live, {name: taps[name] for name in wanted}) as tapped:
        _, expected = tapped(pixels)
    values = Simulation(prepared.model).tensors(pixels)
    return {name: _same(name, expected[name], values) for name in wanted}


def _same(tap: str, expected: torch.Tensor, values: Mapping[str, torch.Tensor]) -> str:
    limit = TAP_LIMIT * float(expected.abs().max())
    found = [
        name
        for name, value in values.items()
        if value.shape == expected.shape and float((value - expected).abs().max()) <= limit
    ]
    if not found:
        raise StageError(
            f"tune: the method reads the map {tap!r}, which the exported graph does not hold; use quantize.scheme: static, or a method that reads other maps"
        )
    return found[-1]  # of equal ones the last: what the next layer reads


def _accuracy(simulation: nn.Module, student: Trained, pictures: ImageSet) -> float:
    logits = predict(
        simulation,
        pictures.validation(),
        pictures.image_size,
        student.network.normalization,
        device=pictures.labels.device,
    )
    return accuracy(logits, pictures.labels[pictures.validation_index])


def _hold_against_file(
    simulation: Simulation,
    prepared: PreparedGraph,
    settings: QuantizeSettings,
    student: Trained,
    data: CalibrationData,
    path: Path,
) -> tuple[float, float]:
    """Share of equal predictions and mean |logit difference| of the simulation and the int8 file. Raises StageError where they answer otherwise."""
    pictures = build.load_images(data.training, "cpu")
    chosen = pictures.validation()[:CHECKED]
    tuned = export.int8.quantize.with_weights(prepared, simulation.learned_weights())
    export.int8.quantize.emit(tuned, path, settings, simulation.learned_ranges())
    written = export.int8.search.logits(
        path, settings.isa, np.ascontiguousarray(views.evaluation_view(chosen, pictures.image_size).numpy())
    )
    path.unlink()
    simulated = predict(simulation, chosen, pictures.image_size, student.network.normalization).numpy()
    differ = int((simulated.argmax(1) != written.argmax(1)).sum())
    agreement = 1 - differ / len(chosen)
    if differ > max(
        1, (1 - LEAST_AGREEMENT) * len(chosen)
    ):  # one picture may lie between two classes, however few there are
        raise StageError(
            f"tune: the int8 file gives {100 * agreement:.1f} % of the predictions that training simulated (at least {100 * LEAST_AGREEMENT:g} %): "
            "it is not what was trained"
        )
    return agreement, float(np.abs(simulated - written).mean())


TUNE = Stage("tune", 5, run_tune, Tuned)
