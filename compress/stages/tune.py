"""Quantisation-aware distillation: train the student further as its int8 file computes it.

Method and teacher stay the same. The graph that deploys is trained: BatchNorms are folded, operators rewritten for
integers, and fake quantisation stands where the quantiser puts its QuantizeLinear/DequantizeLinear pairs. The weights
and ranges then go through the same quantiser as calibrated ones, and the file is compared with the simulation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import nn

import export.int8.quantize
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
from compress.stages.support.int8_agreement import compare_with_file
from compress.training import build, checkpoint
from compress.training.class_balance import class_weights
from compress.training.distill import log_teacher_cost
from compress.training.evaluation import ImageSet, accuracy, predict
from compress.training.loop import FitResult, fit
from compress.training.step import TeacherSource
from compress.training.teacher.signals import teacher_source
from export.int8.qat.model import Simulation
from export.int8.quantize import PreparedGraph, QuantizeSettings
from export.runtime import ExportError

PROBE_IMAGES = 8  # images by which the method's taps are found in the graph
TAP_LIMIT = 1e-3  # largest difference of a tap between the two graphs, as a fraction of its largest value


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

    Args:
        config: The recipe's `quantize` section with `scheme: qat`.
        context: Of the stage.
        method: The `distill` section that the student was trained by.
        trained: Holds the method's own modules, which continue from where they were.
        stripped: The float student.
        model: Its ONNX file.
        teacher: None where the student was trained without one.
        data: The training data and the calibration images.
        train: The settings that the student was trained by.
        target: The processor family of the int8 file.
        versions: Versions of torch, onnx and onnxruntime; part of the key only.
    """
    images, _ = calibration_arrays(data)
    settings = QuantizeSettings(target, config.per_channel, config.calibrate, config.percentile, config.float_layers)
    dataset, live = build.load_images(data.training, context.device), _student(stripped)
    own = _tuning_settings(train, config)
    method_module, source = _restore_method(method, trained, live, teacher, dataset, data, own, context)
    try:
        prepared = export.int8.quantize.prepare(
            (model.int8_source or model.file).path, images, cache=context.cache / "calibration"
        )
        taps = _find_tensors(method_module.student_taps, stripped.trained, live, prepared, dataset)
        pairs = export.int8.quantize.insert_qdq(prepared, settings)
        simulation = Simulation(pairs.model, pairs, shown=taps).to(context.device)
    except ExportError as error:
        raise StageError(f"tune: {error}") from error
    static = _accuracy(simulation, stripped.trained, dataset)
    fitted = _fit(simulation, method_module, source, dataset, own, stripped, trained, list(taps), context)
    try:
        agreement, difference = compare_with_file(
            simulation.cpu().eval(), prepared, settings, stripped.trained, data, context.work / "check.onnx"
        )
    except ExportError as error:
        raise StageError(f"tune: {error}") from error
    if sentence := worse(static, fitted.history[-1].get("top1_validation", static)):
        context.console.warn(sentence)
    return Tuned(
        target=target,
        weights=_save_weights(simulation, context.work / "tuned.safetensors"),
        ranges=_save_ranges(simulation, context.work / "ranges.json"),
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


def _fit(
    simulation: Simulation,
    method: Method,
    teacher: TeacherSource | None,
    dataset: ImageSet,
    train: ResolvedTrain,
    stripped: Stripped,
    trained: Distilled,
    taps: list[str],
    context: Context,
) -> FitResult:
    """Train the simulation, from the epoch on at which distillation ended."""
    steps = -(-len(dataset.train_index) // train.batch_size)
    title = f"int8 of {stripped.trained.network.model} by {trained.method}"
    with context.console.training(title, train.epochs, steps) as progress:
        return fit(
            simulation,
            method,
            dataset,
            train=train,
            normalization=stripped.trained.network.normalization,
            taps={name: f"taps.{name}:out" for name in taps},
            teacher=teacher,
            device=context.device,
            folder=context.work,
            progress=progress,
            epochs_before=trained.epochs,
        )


def _tuning_settings(train: ResolvedTrain, config: ResolvedQat) -> ResolvedTrain:
    """Return the settings of the training, with those that `quantize` sets for tuning."""
    return train.model_copy(
        update={
            "epochs": config.epochs,
            "lr": config.lr,
            "schedule": ResolvedSchedule(),
            "precision": "float32",
            "keep": "last",
            "ema": None,
            "patience": None,
        }
    )


def _save_weights(simulation: Simulation, path: Path) -> File:
    tensors = {name: torch.from_numpy(value) for name, value in simulation.learned_weights().items()}
    path.write_bytes(save(tensors, metadata={"format": "pt"}))
    return File.of(path)


def _save_ranges(simulation: Simulation, path: Path) -> File:
    path.write_text(json.dumps(simulation.learned_ranges(), indent=1) + "\n")
    return File.of(path)


def worse(static: float, tuned: float) -> str | None:
    """Return a warning if tuning lost accuracy."""
    if tuned >= static:
        return None
    return (
        f"tuning made it worse: {100 * tuned:.2f} % on validation images, static int8 of the same student has "
        f"{100 * static:.2f} %; lower quantize.lr, or use quantize.scheme: static"
    )


def _student(stripped: Stripped) -> nn.Module:
    """Return the float student in torch, whose modules the method's taps name."""
    if stripped.trained.network.deployed is not None:
        raise StageError(
            "tune: the method ships another network than it compares with the teacher, so its loss cannot be used; "
            "use quantize.scheme: static"
        )
    return build.load_network(stripped.trained.network, stripped.trained.weights, "cpu").eval()


def _restore_method(
    config: Distill,
    trained: Distilled,
    live: nn.Module,
    teacher: Trained | None,
    dataset: ImageSet,
    data: CalibrationData,
    train: ResolvedTrain,
    context: Context,
) -> tuple[Method, TeacherSource | None]:
    """Return the method with its own modules as distillation left them, and its teacher."""
    state = {
        name.removeprefix("method."): value
        for name, value in load_file(trained.combined.path).items()
        if name.startswith("method.")
    }
    outline = (
        build.outline_of(teacher.network, build.load_network(teacher.network, teacher.weights, "cpu"))
        if teacher
        else None
    )
    method = build_method(
        config,
        student=build.outline_of(trained.network, live),
        teacher=outline,
        train_labels=dataset.labels,
        train_index=dataset.train_index,
        label_smoothing=train.label_smoothing,
        seed=train.seed,
        class_weights=class_weights(train, dataset, data.training.classes),
    )
    checkpoints.load_state(method, state, source="distill")
    method.to(context.device)
    if teacher is None or outline is None or not method.needs_teacher:
        return method, None
    source = teacher_source(
        teacher,
        method,
        outline.taps,
        data.training,
        len(dataset.images),
        device=context.device,
        cache=context.cache,
        warn=context.console.warn,
    )
    log_teacher_cost(source, teacher, config.name, data.training, len(dataset.train_index), train, context)
    return method, source


@torch.no_grad()
def _find_tensors(
    wanted: tuple[str, ...], student: Trained, live: nn.Module, prepared: PreparedGraph, dataset: ImageSet
) -> dict[str, str]:
    """Return, for each tap, the graph's tensor with the same values on a few images. Raises StageError without one."""
    if not wanted:
        return {}
    size, normalization = student.network.image_size, student.network.normalization
    raw = views.evaluation_view(dataset.images[dataset.train_index[:PROBE_IMAGES]].cpu(), size)
    pixels = views.to_float(raw, normalization.mean, normalization.std)
    taps = build.outline_of(student.network, live).taps
    with Tapped(live, {name: taps[name] for name in wanted}) as tapped:
        _, expected = tapped(pixels)
    values = Simulation(prepared.model).tensors(pixels)
    return {name: _find_tensor(name, expected[name], values) for name in wanted}


def _find_tensor(tap: str, expected: torch.Tensor, values: Mapping[str, torch.Tensor]) -> str:
    limit = TAP_LIMIT * float(expected.abs().max())
    found = [
        name
        for name, value in values.items()
        if value.shape == expected.shape and float((value - expected).abs().max()) <= limit
    ]
    if not found:
        raise StageError(
            f"tune: the method reads the map {tap!r}, which the exported graph does not hold; "
            "use quantize.scheme: static, or a method that reads other maps"
        )
    return found[-1]  # the last of equal tensors is the one that the next layer reads


def _accuracy(simulation: nn.Module, student: Trained, dataset: ImageSet) -> float:
    logits = predict(
        simulation,
        dataset.validation(),
        dataset.image_size,
        student.network.normalization,
        device=dataset.labels.device,
    )
    return accuracy(logits, dataset.labels[dataset.validation_index])


TUNE = Stage("tune", 5, run_tune, Tuned)
