"""Export to ONNX, compared with torch on real images and with the accuracy recorded when training ended."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

import export.graph.foreign_model
import export.graph.from_torch
import export.graph.rewrites
from compress import __version__
from compress.core.errors import StageError
from compress.core.records.base import File
from compress.core.records.deployment import Exported
from compress.core.records.training import Trained, TrainingData
from compress.core.store import Context, Stage
from compress.data.augment import views
from compress.models.fused import NOISE_IMAGES, Fused, fused
from compress.recipe.schema import Export
from compress.training import build
from export.graph.from_torch import Parity
from export.graph.rewrites import Rewrite
from export.int8.integer_share import integer_share
from export.runtime import FOREIGN, Contract, ExportError, Model, write_sidecar
from export.runtime import images as image_files

# Largest |logit difference| between torch and onnxruntime; for logits above 1 it grows with the largest of them.
PARITY_LIMIT = 1e-3
BRANCHES = "branches to one layer"
REWRITE_IMAGES = 64  # validation images that the rewrites are judged on


def preprocessing(
    source: str, resize: int, size: int, value_range: tuple[float, float] | None = None
) -> dict[str, Any]:
    """Return, as JSON, the steps from an image file to the network's input, as the data set's images went through.

    Args:
        source: `data.source`.
        resize: The short side in pixels to which an image is resized.
        size: The side of the square that is cut out of its centre.
        value_range: Of images of more than 8 bits, which become 0 to 255.
    """
    scaled = {} if value_range is None else {image_files.VALUES: list(value_range)}
    steps: list[dict[str, Any]] = [
        {"step": "orient", "by": "EXIF orientation"},
        {"step": "decode", "color": "RGB", "bits": 8, "transparency": "on white", **scaled},
        {"step": "resize", "short_side": resize, "filter": "bilinear", "antialias": True},
        {"step": "crop", "from": "centre", "size": [size, size]},
    ]
    if source == "fashion":
        steps = [
            {"step": "decode", "color": "grey", "bits": 8, "size": [28, 28], "background": "black"},
            {"step": "pad", "size": [size, size], "value": 0},
            {"step": "repeat", "channels": 3},
        ]
    return {
        "version": 1,
        "steps": steps,
        "result": {"channels": "RGB", "dtype": "uint8", "layout": "NHWC", "range": [0, 255]},
    }


def run_convert(
    config: Export,
    *,
    context: Context,
    model: Trained,
    recorded: File | None,
    data: TrainingData,
    versions: dict[str, str],
    preprocessing: dict[str, Any] | None = None,
) -> Exported:
    """Write a trained network as float32 ONNX; of a student, also the float file that int8 is made from if it differs.

    Args:
        config: The recipe's `export` section.
        context: Of the stage.
        model: The network.
        recorded: A student's predictions (V,) on the validation images, from the strip stage; None for a teacher.
        data: The training data.
        versions: Versions of torch, onnx and onnxruntime; part of the key only, because others write other bytes.
        preprocessing: What an application must do with an image, for the file's metadata.
    """
    network = model.network
    if network.black_box:
        return _copy(context, model, data)
    live = build.load_network(network, model.weights, "cpu").eval()
    form = fused(live, network.image_size)
    contract = Contract(
        classes=data.classes,
        image_size=network.image_size,
        mean=network.normalization.mean,
        std=network.normalization.std,
        layout=config.input,
        made_by=f"compress {__version__}",
        preprocessing=preprocessing,
    )
    path, source = context.work / "model.onnx", context.work / "model.int8source.onnx"
    dataset = build.load_images(data, "cpu")
    validation = views.evaluation_view(dataset.validation(), network.image_size)
    judging = validation[:REWRITE_IMAGES].numpy()
    try:
        exported = export.graph.from_torch.to_onnx(form.network, path, contract, opset=config.opset, images=judging)
        export.graph.from_torch.check_runtime(path, config.min_runtime)
        parity = export.graph.from_torch.parity(live, path, validation.numpy())
        rewrites = (
            exported.rewrites
            if recorded is None
            else (*exported.rewrites, *export.graph.rewrites.for_integers(path, source, judging, integer_share))
        )
    except ExportError as error:
        raise StageError(f"convert {network.model}: {error}") from error
    disagreements = _check_parity(parity, recorded, model, dataset.labels[dataset.validation_index])
    return Exported(
        file=File.of(path),
        opset=exported.opset,
        ir_version=exported.ir_version,
        nodes=exported.nodes,
        input=config.input,
        max_abs_diff=parity.max_abs_diff,
        disagreements=disagreements,
        images=len(validation),
        rewrites=tuple(asdict(rewrite) for rewrite in (*_fusing(form, network.model, context), *rewrites)),
        int8_source=File.of(source) if source.is_file() else None,
    )


def _fusing(form: Fused, name: str, context: Context) -> tuple[Rewrite, ...]:
    """Say what came of fusing branches; the file was compared with the network as it was trained, branches and all."""
    if not form.modules:
        return ()
    if form.kept:
        reason = f"the same answers with {form.modules} modules fused"
        context.console.line(f"{name}: {reason}")
    else:
        reason = "fused, the network gives other answers" if form.difference is not None else "they could not be fused"
        context.console.warn(f"{name}: its branches are exported as they are, because {reason}; the file is slower")
    if form.difference is None:
        return ()
    difference, files = form.difference, "float and int8"
    return (Rewrite(BRANCHES, form.modules, form.kept, reason, files, difference, form.limit, NOISE_IMAGES),)


def _check_parity(parity: Parity, recorded: File | None, model: Trained, labels: torch.Tensor) -> int:
    """Return how many predictions differ from the recorded ones. Raises StageError if the file is not the network."""
    limit = PARITY_LIMIT * max(1.0, parity.largest)
    if not parity.max_abs_diff <= limit:
        raise StageError(
            f"convert {model.network.model}: onnxruntime and torch differ by {parity.max_abs_diff:.2e} on real images "
            f"(limit {limit:.3g}, for logits that reach {parity.largest:.3g})"
        )
    disagreements = _disagreements(parity.predictions, recorded, model, labels)
    if disagreements > max(1, len(labels) // 1000):
        raise StageError(
            f"convert {model.network.model}: {disagreements} of {len(labels)} predictions differ from those recorded "
            "when training ended; the exported file is not the trained network"
        )
    return disagreements


def _copy(context: Context, model: Trained, data: TrainingData) -> Exported:
    """Copy another project's ONNX file byte for byte, with its contract beside it, and check its recorded accuracy."""
    network, path = model.network, context.work / "model.onnx"
    shutil.copyfile(model.weights.path, path)
    dataset = build.load_images(data, "cpu")
    validation = views.evaluation_view(dataset.validation(), network.image_size)
    try:
        found = export.graph.foreign_model.inspect(
            path, image_size=network.side, outputs=network.outputs or network.classes
        )
        contract = Contract(
            data.classes,
            network.image_size,
            network.normalization.mean,
            network.normalization.std,
            found.layout,
            FOREIGN,
            channels=network.channels,
            order=network.order,
            own_size=network.own_size,
        )
        beside = write_sidecar(path, contract)
        predictions = Model.load(path).run(validation.numpy()).argmax(axis=1)
    except ExportError as error:
        raise StageError(f"convert {network.model}: {error}") from error
    lost = _disagreements(predictions, None, model, dataset.labels[dataset.validation_index])
    if lost > max(1, len(validation) // 1000):
        raise StageError(
            f"convert {network.model}: {lost} of {len(validation)} images are classified differently than when its "
            "accuracy was recorded"
        )
    return Exported(
        file=File.of(path),
        opset=found.opset,
        ir_version=found.ir_version,
        nodes=found.nodes,
        input=found.layout,
        max_abs_diff=None,
        disagreements=lost,
        images=len(validation),
        rewrites=(),
        contract=File.of(beside),
    )


def _disagreements(predictions: np.ndarray, recorded: File | None, model: Trained, labels: torch.Tensor) -> int:
    """Count predictions that differ from the recorded ones; without a record, correct answers lost or gained."""
    if recorded is not None:
        return int((predictions != np.load(recorded.path)).sum())
    return abs(int((predictions == labels.numpy()).sum()) - round(model.top1_validation * len(labels)))


CONVERT = Stage("convert", 3, run_convert, Exported)
