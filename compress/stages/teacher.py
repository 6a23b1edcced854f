"""A teacher candidate: trained or loaded, and judged on the validation images."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from compress.core.errors import StageError, UsageError
from compress.core.records.base import File
from compress.core.records.training import Network, Normalization, Trained, TrainingData
from compress.core.records.training_checks import TrainingChecks
from compress.core.store import Context, Stage
from compress.data.augment import views
from compress.methods import build_method
from compress.models import checkpoints
from compress.models.count import macs, params
from compress.models.fused import fused
from compress.models.input_adapter import InputAdapter, inner_network
from compress.recipe.schema import Distill, ResolvedCandidate, ResolvedTrain
from compress.stages.support import foreign_teacher
from compress.training import build, checkpoint
from compress.training.checks import check_training
from compress.training.class_balance import weigh_classes
from compress.training.evaluation import ImageSet, accuracy, predict, score
from compress.training.linear_probe import probe_of
from compress.training.loop import FitResult, fit
from compress.verdict import conventions, diagnosis
from compress.verdict.intervals import wilson

REMEDIES = {  # what to set in the candidate's section, by the fault that was found
    "BGR": "; set channels: bgr",
    "normalisation": "; set normalize",
    "range": "; set normalize",
    "swapped classes": "; list its classes in their order",
    "classes": "; list its classes in their order",
}


def run_teacher(
    config: ResolvedCandidate,
    *,
    context: Context,
    network: Network,
    data: TrainingData,
    weights: File | None,
    external: tuple[File, ...] = (),
    reading: int | None = None,
    metric: str | None = None,
) -> Trained:
    """Train a candidate, or load it, or both; judge it on the validation images in float32.

    Args:
        config: The candidate's section.
        context: Of the stage.
        network: How to build it.
        data: The training data.
        weights: The checkpoint or the ONNX file, where the recipe names one.
        external: Files with the weights of the ONNX file; part of the key only.
        reading: See `foreign_teacher.READING`; part of the key only.
        metric: By which candidates are compared; None: top-1.
    """
    begin = time.monotonic()
    torch.manual_seed(config.train.seed if config.train else 0)
    dataset = build.load_images(data, context.device)
    counted: tuple[int, int | None] = (0, None)
    head, taken = None, list[str]()
    if network.black_box and weights is not None:
        path = context.work / "teacher.onnx"
        taken += _read_foreign(network, weights.path, path, dataset, data)
        counted = _inspected(network, File.of(path))
        model = build.load_network(network, File.of(path), context.device)
    else:
        model, head = build.build_for_training(
            network,
            config.weights,
            weights,
            new_head=config.train is not None,
            device=context.device,
            say=taken.append,
        )
    fitted, checks = _trained(model, head, config.train, context, network, dataset, data)
    logits = predict(model, dataset.validation(), data.image_size, network.normalization, device=dataset.labels.device)
    _check_finite(config, logits)
    wanted = dataset.labels[dataset.validation_index]
    top1 = accuracy(logits, wanted)
    advice = _input_advice(network, model, dataset, top1, data.classes) if config.train is None else None
    known = _explained(advice)
    _expect(config, top1, len(logits), lambda: known or _find_fault(config, model, dataset, network, data))
    if not network.black_box:
        path, exported = context.work / "teacher.safetensors", fused(model.eval(), network.image_size).network
        counted = params(exported), macs(exported, network.image_size)
        checkpoints.save_state(inner_network(model), path)
    return Trained(
        network=replace(network, weights_key=None, output=None),  # the file that was written holds what was taken alone
        weights=File.of(path),
        top1_validation=top1,
        params=counted[0],
        macs=counted[1],
        epochs=len(fitted.history) if fitted else 0,
        seconds=round(time.monotonic() - begin, 2),
        history=File.of(context.work / checkpoint.HISTORY) if fitted else None,
        origin=_origin(config, taken),
        largest_logit=float(logits.abs().max()),
        checks=checks,
        score=None if metric is None else score(metric, logits, wanted),
        advice=advice,
        **_circumstances(fitted),
    )


def _trained(
    model: nn.Module,
    head: str | None,
    train: ResolvedTrain | None,
    context: Context,
    network: Network,
    dataset: ImageSet,
    data: TrainingData,
) -> tuple[FitResult | None, TrainingChecks | None]:
    """Train the candidate where it has settings for that. `head`: path of a last layer that is still fresh."""
    if train is None:
        return None, None
    class_weights = weigh_classes(network.model, train, dataset, data, context)
    probe = probe_of(model, head, dataset, network, train, context, data.classes)
    fitted = _fit(model, train, context, network, dataset, class_weights, start_may_ship=probe is not None)
    return fitted, check_training(model, dataset, network.normalization, train, fitted.steps, probe)


def _circumstances(fitted: FitResult | None) -> dict[str, Any]:
    """Return how a training ran, as `Trained` names it."""
    names = ("images_per_second", "precision", "threads", "kernels", "gpu")
    return {name: getattr(fitted, name, None) for name in names}


def _read_foreign(network: Network, source: Path, path: Path, dataset: ImageSet, data: TrainingData) -> tuple[str, ...]:
    """Write another project's file to `path` as one that gives logits; return what was done to it."""
    judging = views.evaluation_view(dataset.validation()[: foreign_teacher.IMAGES], data.image_size)
    return foreign_teacher.read_foreign(network, source, path, judging.cpu().numpy())


def _fit(
    model: nn.Module,
    train: ResolvedTrain,
    context: Context,
    network: Network,
    dataset: ImageSet,
    class_weights: torch.Tensor | None,
    *,
    start_may_ship: bool,
) -> FitResult:
    """Train a candidate by plain cross-entropy."""
    outline = build.outline_of(network)
    method = build_method(
        Distill(method=("none",)),
        student=outline,
        teacher=None,
        train_labels=dataset.labels,
        label_smoothing=train.label_smoothing,
        class_weights=class_weights,
    )
    steps = -(-len(dataset.train_index) // train.batch_size)
    with context.console.training(f"teacher {network.model}", train.epochs, steps) as progress:
        return fit(
            model,
            method,
            dataset,
            train=train,
            normalization=network.normalization,
            taps=outline.taps,
            teacher=None,
            device=context.device,
            folder=context.work,
            progress=progress,
            group=context.group,
            start_may_ship=start_may_ship,
        )


def file_side(path: Path) -> int | None:
    """Return the side in pixels of the images that an ONNX file takes; None: any."""
    from export.graph.foreign_model import fixed_image_size

    return fixed_image_size(path)


def _inspected(network: Network, file: File) -> tuple[int, int | None]:
    """Return parameters and multiply-accumulates of another project's ONNX file.

    Raises UsageError if the file is not what the recipe says.
    """
    from export.graph.foreign_model import inspect
    from export.runtime import ExportError

    try:
        found = inspect(file.path, image_size=network.side, outputs=network.outputs or network.classes)
    except ExportError as error:
        raise UsageError(f"teacher {network.model}: {error}") from error
    return found.params, found.macs


def _check_finite(config: ResolvedCandidate, logits: torch.Tensor) -> None:
    """Raise StageError where a logit is not a number or infinite."""
    bad = int((~torch.isfinite(logits).all(dim=1)).sum())
    if bad:
        raise StageError(
            f"teacher {config.title}: its logits are not finite (NaN or infinite) for {bad:,} of {len(logits):,} "
            "validation images, so it cannot teach; check the file, and what it expects: normalize, channels, output"
        )


def _input_advice(
    network: Network, model: nn.Module, dataset: ImageSet, top1: float, classes: tuple[str, ...]
) -> str | None:
    """Look for the convention that a finished network at chance level was trained with.

    Return a sentence with the lines of the recipe; None for a network that is above chance.
    """
    labels = dataset.labels[dataset.validation_index].cpu().numpy()
    share = conventions.chance(labels)
    if wilson(round(top1 * len(labels)), len(labels))[0] > share:
        return None
    images = dataset.validation()
    place = dataset.labels.device

    def answers(convention: conventions.Convention, chosen: np.ndarray) -> np.ndarray:
        adapter = InputAdapter(
            inner_network(model), size=network.own_size, bgr=convention.channels == "bgr", order=None
        )
        constants = Normalization(convention.mean, convention.std)
        batch = images[torch.from_numpy(chosen).to(images.device)]
        return predict(adapter.to(place), batch, dataset.image_size, constants, device=place).cpu().numpy()

    found = conventions.find(answers, labels, classes, network.order)
    return conventions.NONE_FITS if found is None else found.sentence()


def _explained(advice: str | None) -> str | None:
    """Return the advice that names a convention; None if no convention fits."""
    return None if advice == conventions.NONE_FITS else advice


def _expect(config: ResolvedCandidate, top1: float, images: int, find_fault: Callable[[], str | None]) -> None:
    """Stop before distilling from a checkpoint that misses its known accuracy: its input or its weights are wrong.

    `find_fault` looks for the known mistake that explains it. Raises StageError.
    """
    if config.expect_top1 is None:
        return
    high = wilson(round(top1 * images), images)[1]
    if high < config.expect_top1:
        raise StageError(
            f"teacher {config.title}: expect_top1 is {config.expect_top1:.4f}, but validation gives {top1:.4f} "
            f"(95 % interval ends at {high:.4f}, {images} images); "
            f"{find_fault() or 'check normalize, image_size and the order of the classes'}"
        )


def _find_fault(
    config: ResolvedCandidate, model: nn.Module, dataset: ImageSet, network: Network, data: TrainingData
) -> str | None:
    """Name the known mistake in the input or in the order of the classes that explains a low accuracy."""
    images = views.evaluation_view(dataset.validation(), data.image_size).cpu().numpy()
    normalization = network.normalization

    def answers(pixels: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(pixels).to(dataset.labels.device)
        with torch.no_grad():
            return predict(model, batch, data.image_size, normalization, batch_size=64).cpu().numpy()

    labels = dataset.labels[dataset.validation_index].cpu().numpy()
    fault = diagnosis.name_fault(
        answers,
        images,
        labels,
        config.expect_top1 or 1.0,
        normalization=(normalization.mean, normalization.std),
        classes=data.classes,
    )
    return None if fault is None else fault.sentence() + REMEDIES.get(fault.kind, "")


def _origin(config: ResolvedCandidate, taken: list[str]) -> str:
    """Describe where the weights come from. `taken`: what was taken from a file that holds more."""
    if config.onnx is not None:
        return "an ONNX file: " + "; ".join(taken) if taken else "an ONNX file as it is"
    if config.weights == "none":
        return "trained here"
    source = {"embedded": "shipped with the package", "file": "checkpoint"}.get(config.weights, config.weights)
    source += "".join(f" ({note})" for note in taken)
    return f"{source}, trained further here" if config.train else source


TEACHER = Stage("teacher", 4, run_teacher, Trained, together=True)
