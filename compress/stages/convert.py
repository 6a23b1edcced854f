"""Export to ONNX, held against torch on real pictures and against the accuracy recorded when training ended."""

from __future__ import annotations

import numpy as np
import torch

import export.convert
from compress import __version__, loading
from compress.data import views
from compress.errors import StageError
from compress.results import Exported, File, Trained, TrainingData
from compress.schema import Export
from compress.store import Context, Stage
from export.runtime import Contract, ExportError

PARITY_LIMIT = 1e-3  # largest |logit difference| between torch and onnxruntime


def _run(config: Export, *, context: Context, model: Trained, recorded: File | None, data: TrainingData, versions: dict[str, str]) -> Exported:
    """One float32 ONNX file of a trained network.

    `recorded`: predictions (V,) on the validation pictures from the strip stage; None recomputes them (teachers).
    `versions` (torch, onnx, onnxruntime) are part of the key only: other versions write other bytes.
    """
    network = model.network
    live = loading.network(network, model.weights, "cpu").eval()
    contract = Contract(
        classes=data.classes,
        image_size=network.image_size,
        mean=network.normalization.mean,
        std=network.normalization.std,
        layout=config.input,
        made_by=f"compress {__version__}",
    )
    path = context.work / "model.onnx"
    pictures = loading.pictures(data, "cpu")
    validation = views.evaluation_view(pictures.images[pictures.validation_index], network.image_size)
    try:
        exported = export.convert.to_onnx(live, path, contract, opset=config.opset)
        export.convert.check_runtime(path, config.min_runtime)
        parity = export.convert.parity(live, path, validation.numpy())
    except ExportError as error:
        raise StageError(f"convert {network.model}: {error}") from error
    if not parity.max_abs_diff <= PARITY_LIMIT:
        raise StageError(f"convert {network.model}: onnxruntime and torch differ by {parity.max_abs_diff:.2e} on real pictures (limit {PARITY_LIMIT:g})")
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
        pictures=len(validation),
        rewrites=tuple(exported.rewrites),
    )


def _disagreements(predictions: np.ndarray, recorded: File | None, model: Trained, labels: torch.Tensor) -> int:
    """How many predictions differ from the recorded ones; without a record, how many correct answers were lost or gained."""
    if recorded is not None:
        return int((predictions != np.load(recorded.path)).sum())
    return abs(int((predictions == labels.numpy()).sum()) - round(model.top1_validation * len(labels)))


run = Stage("convert", 1, _run, Exported)
