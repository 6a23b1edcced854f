"""From a PyTorch classifier to one ONNX file that carries everything an application needs."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from export.graph import rewrites, surgery
from export.graph.quiet import quiet
from export.graph.rewrites import Rewrite
from export.graph.surgery import check_runtime
from export.runtime import INPUT, OUTPUT, Contract, ExportError, Model, scale_and_shift

if TYPE_CHECKING:  # torch costs seconds to import
    from onnx import ModelProto
    from torch import Tensor, nn

__all__ = ["ExportResult", "Parity", "check_runtime", "parity", "to_onnx"]

PARITY_LIMIT = 1e-3  # of logits of magnitude 1; float32 kernels of two runtimes stay two orders below it


@dataclass(frozen=True)
class ExportResult:
    """What was written. `rewrites`: the float-exact rewrites, kept and refused."""

    opset: int
    ir_version: int
    nodes: int
    bytes: int
    rewrites: tuple[Rewrite, ...]


@dataclass(frozen=True)
class Parity:
    """Float32 PyTorch against onnxruntime: differences of logits, share of equal predictions in [0, 1].

    `predictions`: onnxruntime's, int64 (N,). `largest`: PyTorch's largest logit, without its sign; float32 rounds in proportion to it.
    """

    max_abs_diff: float
    mean_abs_diff: float
    agreement: float
    images: int
    predictions: np.ndarray
    largest: float


def to_onnx(
    model: nn.Module, path: Path, contract: Contract, *, opset: int = 18, images: np.ndarray | None = None
) -> ExportResult:
    """Export `model`, float32 (N, 3, H, W) to logits (N, K), as one file with a dynamic batch.

    With `uint8_nhwc` the graph takes pixels and normalises them itself. `images` uint8 (N, H, W, 3) judge the rewrites; noise without.
    The given module is not changed. Raises ExportError.
    """
    network = _frozen(model)
    traced = _trace(network, contract, opset)
    _check_classes(network, contract)
    proto, judged = rewrites.for_every_file(traced, contract, images)
    surgery.clean(proto, contract.to_metadata(), made_by=contract.made_by)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = surgery.save(proto, path)
    try:
        saved = surgery.check(path, opset=opset)
        _check_batches(network, path, contract)
    except ExportError:
        path.unlink()
        raise
    return ExportResult(opset, saved.ir_version, len(saved.graph.node), len(data), judged)


def fixed_batch(source: Path, target: Path) -> float:
    """Write a copy that takes one picture at a time, as NNAPI, CoreML and QNN want it; returns the largest difference of the logits.

    With known shapes onnxruntime may fuse float kernels otherwise; beyond the rounding of float32 nothing may differ. Raises ExportError.
    """
    model = onnx.load(str(source))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    target.parent.mkdir(parents=True, exist_ok=True)
    surgery.save(model, target)
    surgery.check(target, opset=surgery.opset_of(model))
    dynamic, fixed = Model.load(source), Model.load(target)
    images = rewrites.noise_images(dynamic.contract)
    expected = dynamic.run(images, batch=1)
    difference = float(np.abs(expected.astype(np.float64) - fixed.run(images, batch=1)).max())
    if not difference <= rewrites.PARITY * float(np.abs(expected).max()):
        target.unlink()
        raise ExportError(
            f"{target.name}: with a fixed batch the logits differ from those of {source.name} by {difference:.3g}"
        )
    return difference


def parity(model: nn.Module, path: Path, images: np.ndarray, *, batch: int = 64) -> Parity:
    """Hold the file against the network on real images, uint8 (N, H, W, 3)."""
    if len(images) == 0:
        raise ExportError("parity needs at least one picture")
    runtime = Model.load(path)
    expected = _torch_logits(_frozen(model), images, runtime.contract, batch)
    found = runtime.run(images, batch)
    difference = np.abs(expected.astype(np.float64) - found)
    if not np.isfinite(difference).all():
        raise ExportError(f"{path.name}: logits that are not finite")
    agreement = float((expected.argmax(1) == found.argmax(1)).mean())
    return Parity(
        float(difference.max()),
        float(difference.mean()),
        agreement,
        len(images),
        found.argmax(1),
        float(np.abs(expected).max()),
    )


def _frozen(model: nn.Module) -> nn.Module:
    """A copy on the CPU, so that neither device nor hooks nor gradients of the caller's module are touched."""
    import torch

    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        raise ExportError(f"the network is in training mode ({training[0]}): call eval() before exporting")
    return copy.deepcopy(model).cpu().float().to(memory_format=torch.contiguous_format).requires_grad_(False)


def _with_pixels(network: nn.Module, contract: Contract) -> nn.Module:
    """The network behind a graph of its own that turns uint8 (N, H, W, 3) into its input."""
    import torch
    from torch import nn

    class FromPixels(nn.Module):
        scale: Tensor
        shift: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.network = network
            scale, shift = scale_and_shift(contract)
            self.register_buffer("scale", torch.from_numpy(scale).reshape(1, 3, 1, 1))
            self.register_buffer("shift", torch.from_numpy(shift).reshape(1, 3, 1, 1))

        def forward(self, image: Tensor) -> Tensor:
            # Bytes are transposed before they become floats four times their size. Contiguous: the strides of a mere permute are
            # those of channels_last, for which the exporter writes the adaptive pool as a Gather of computed indices.
            pixels = image.permute(0, 3, 1, 2).contiguous().to(torch.float32)
            return self.network(pixels * self.scale + self.shift)

    return FromPixels().eval()


def _trace(network: nn.Module, contract: Contract, opset: int) -> ModelProto:
    import torch

    size = contract.image_size
    pixels = contract.layout == "uint8_nhwc"
    # Two images: a batch of one could become a constant.
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8) if pixels else torch.zeros(2, 3, size, size)
    with _silent(), torch.no_grad():
        try:
            program = torch.onnx.export(
                _with_pixels(network, contract) if pixels else network,
                (example,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=opset,
                external_data=False,
                dynamic_shapes=({0: "batch"},),
                optimize=True,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise ExportError(f"the exporter cannot convert {type(network).__name__}: {reason}") from error
    assert program is not None
    return program.model_proto


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """The exporter prints progress, logs and warns about its own internals; what matters is checked on the file instead."""
    with quiet(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _torch_logits(network: nn.Module, images: np.ndarray, contract: Contract, batch: int) -> np.ndarray:
    """The definition, (x / 255 - mean) / std, on purpose not the graph's scale and shift."""
    import torch

    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (contract.mean, contract.std))
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), batch):
            pixels = torch.from_numpy(np.ascontiguousarray(images[start : start + batch])).permute(0, 3, 1, 2)
            parts.append(network((pixels.to(torch.float32) / 255 - mean) / std).numpy())
    return np.concatenate(parts)


def _check_classes(network: nn.Module, contract: Contract) -> None:
    image = np.zeros((1, contract.image_size, contract.image_size, 3), dtype=np.uint8)
    try:
        answer = _torch_logits(network, image, contract, 1)
    except RuntimeError as error:
        raise ExportError(
            f"the network cannot run on {contract.image_size} pixels: {str(error).splitlines()[0]}"
        ) from error
    if answer.shape != (1, len(contract.classes)):
        raise ExportError(f"the network answers {answer.shape[1:]} for {len(contract.classes)} classes")


def _check_batches(network: nn.Module, path: Path, contract: Contract) -> None:
    """The batch is dynamic and the file computes what the network computes: batches of 1, 3 and 8."""
    runtime = Model.load(path)
    generator = np.random.default_rng(0)
    for batch in (1, 3, 8):
        images = generator.integers(0, 256, (batch, contract.image_size, contract.image_size, 3), dtype=np.uint8)
        expected = _torch_logits(network, images, contract, batch)
        found = runtime.run(images, batch)
        difference = float(np.abs(expected - found).max())
        if not difference <= PARITY_LIMIT * max(1.0, float(np.abs(expected).max())):
            raise ExportError(f"{path.name}: logits differ from the network's by {difference:.3g} at batch {batch}")
