"""Export to ONNX, held against torch on real pictures and against the accuracy recorded when training ended."""

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
from compress.recipe.schema import Export
from compress.training import build
from export.int8.integer_share import integer_share
from export.runtime import FOREIGN, Contract, ExportError, Model, write_sidecar

PARITY_LIMIT = 1e-3  # largest |logit difference| between torch and onnxruntime, of logits of magnitude 1; of larger ones in proportion
REWRITE_PICTURES = 64  # validation pictures that the rewrites are judged on


def preprocessing(source: str, resize: int, size: int) -> dict[str, Any]:
    """What an application must do from a picture to the file's input, as JSON; the same steps as the pictures of `data.source` went through.

    `resize`: what the short side is resized to; `size`: side of the square that is cut out of its middle.
    """
    made: list[dict[str, Any]] = [
        {"step": "orient", "by": "EXIF orientation"},
        {"step": "decode", "color": "RGB", "bits": 8, "transparency": "on white"},
        {"step": "resize", "short_side": resize, "filter": "bilinear", "antialias": True},
        {"step": "crop", "from": "centre", "size": [size, size]},
    ]
    if source == "fashion":
        made = [
            {"step": "decode", "color": "grey", "bits": 8, "size": [28, 28], "background": "black"},
            {"step": "pad", "size": [size, size], "value": 0},
            {"step": "repeat", "channels": 3},
        ]
    return {
        "version": 1,
        "steps": made,
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
    """One float32 ONNX file of a trained network, and the float file that int8 is made from where that is another one (students).

    `recorded`: predictions (V,) on the validation pictures from the strip stage; None recomputes them (teachers).
    `preprocessing`: what the application must do, for the file's metadata.
    `versions` (torch, onnx, onnxruntime) are part of the key only: other versions write other bytes.
    """
    network = model.network
    if network.black_box:
        return _copied(context, model, data)
    live = build.load_network(network, model.weights, "cpu").eval()
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
    pictures = build.load_images(data, "cpu")
    validation = views.evaluation_view(pictures.validation(), network.image_size)
    judging = validation[:REWRITE_PICTURES].numpy()
    try:
        exported = export.graph.from_torch.to_onnx(live, path, contract, opset=config.opset, images=judging)
        export.graph.from_torch.check_runtime(path, config.min_runtime)
        parity = export.graph.from_torch.parity(live, path, validation.numpy())
        rewrites = (
            exported.rewrites
            if recorded is None
            else (*exported.rewrites, *export.graph.rewrites.for_integers(path, source, judging, integer_share))
        )
    except ExportError as error:
        raise StageError(f"convert {network.model}: {error}") from error
    limit = PARITY_LIMIT * max(1.0, parity.largest)
    if not parity.max_abs_diff <= limit:
        raise StageError(
            f"convert {network.model}: onnxruntime and torch differ by {parity.max_abs_diff:.2e} on real pictures (limit {limit:.3g}, for logits that "
            f"reach {parity.largest:.3g})"
        )
    disagreements = _disagreements(parity.predictions, recorded, model, pictures.labels[pictures.validation_index])
    if disagreements > max(1, len(validation) // 1000):
        raise StageError(
            f"convert {network.model}: {disagreements} of {len(validation)} predictions differ from those recorded when training ended; "
            "the exported file is not the trained network"
        )
    return Exported(
        file=File.of(path),
        opset=exported.opset,
        ir_version=exported.ir_version,
        nodes=exported.nodes,
        input=config.input,
        max_abs_diff=parity.max_abs_diff,
        disagreements=disagreements,
        images=len(validation),
        rewrites=tuple(asdict(rewrite) for rewrite in rewrites),
        int8_source=File.of(source) if source.is_file() else None,
    )


def _copied(context: Context, model: Trained, data: TrainingData) -> Exported:
    """Another project's ONNX file, byte for byte, with its contract beside it; held against the accuracy that was recorded."""
    network, path = model.network, context.work / "model.onnx"
    shutil.copyfile(model.weights.path, path)
    pictures = build.load_images(data, "cpu")
    validation = views.evaluation_view(pictures.validation(), network.image_size)
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
    lost = _disagreements(predictions, None, model, pictures.labels[pictures.validation_index])
    if lost > max(1, len(validation) // 1000):
        raise StageError(
            f"convert {network.model}: {lost} of {len(validation)} pictures are answered otherwise than when its accuracy was recorded"
        )
    return Exported(
        File.of(path),
        found.opset,
        found.ir_version,
        found.nodes,
        found.layout,
        None,
        lost,
        len(validation),
        (),
        File.of(beside),
    )


def _disagreements(predictions: np.ndarray, recorded: File | None, model: Trained, labels: torch.Tensor) -> int:
    """How many predictions differ from the recorded ones; without a record, how many correct answers were lost or gained."""
    if recorded is not None:
        return int((predictions != np.load(recorded.path)).sum())
    return abs(int((predictions == labels.numpy()).sum()) - round(model.top1_validation * len(labels)))


CONVERT = Stage("convert", 3, run_convert, Exported)
