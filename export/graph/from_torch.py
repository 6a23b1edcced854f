"""Export a PyTorch classifier as one ONNX file that carries everything an application needs."""

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

from export.graph import onnx_file, rewrites
from export.graph.onnx_file import check_runtime
from export.graph.quiet import quiet
from export.graph.rewrites import Rewrite
from export.runtime import INPUT, OUTPUT, Contract, ExportError, Model, scale_and_shift

if TYPE_CHECKING:  # torch costs seconds to import
    from onnx import ModelProto
    from torch import Tensor, nn

__all__ = ["ExportResult", "Parity", "check_runtime", "parity", "to_onnx"]

# For logits of magnitude 1; float32 kernels of two runtimes stay two orders below it.
PARITY_LIMIT = 1e-3


@dataclass(frozen=True)
class ExportResult:
    """What was written; `rewrites` are the float-exact rewrites, kept and refused."""

    opset: int
    ir_version: int
    nodes: int
    bytes: int
    rewrites: tuple[Rewrite, ...]


@dataclass(frozen=True)
class Parity:
    """Float32 PyTorch compared with onnxruntime.

    Attributes:
        max_abs_diff: largest difference of logits.
        mean_abs_diff: mean difference of logits.
        agreement: share of equal predictions in [0, 1].
        images: how many images were compared.
        predictions: onnxruntime's, int64 (N,).
        largest: PyTorch's largest |logit|; float32 rounds in proportion to it.
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
    """Export a classifier as one file with a dynamic batch; the given module is not changed.

    With layout `uint8_nhwc` the graph takes pixels and normalises them itself.

    Args:
        model: float32 (N, 3, H, W) to logits (N, K), in eval mode.
        path: the file to write.
        contract: what the file says of itself.
        opset: version of the operator set.
        images: uint8 (N, H, W, 3) that the rewrites are judged on; None: noise.

    Raises:
        ExportError: the network cannot be exported, or the file gives other answers.
    """
    network = _frozen(model)
    traced = _trace(network, contract, opset)
    _check_classes(network, contract)
    proto, judged = rewrites.for_every_file(traced, contract, images)
    onnx_file.strip_and_describe(proto, contract.to_metadata(), made_by=contract.made_by)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = onnx_file.save(proto, path)
    try:
        saved = onnx_file.check(path, opset=opset)
        _check_batches(network, path, contract)
    except ExportError:
        path.unlink()
        raise
    return ExportResult(opset, saved.ir_version, len(saved.graph.node), len(data), judged)


def fixed_batch(source: Path, target: Path) -> float:
    """Write a copy that takes one image at a time, as NNAPI, CoreML and QNN need it.

    Returns the largest difference of the logits. With known shapes onnxruntime may fuse float kernels in another way.
    Raises ExportError if more than the rounding of float32 differs.
    """
    model = onnx.load(str(source))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    target.parent.mkdir(parents=True, exist_ok=True)
    onnx_file.save(model, target)
    onnx_file.check(target, opset=onnx_file.opset_of(model))
    dynamic, fixed = Model.load(source), Model.load(target)
    images = rewrites.noise_images(dynamic.contract)
    expected = dynamic.run(images, batch=1)
    difference = float(np.abs(expected.astype(np.float64) - fixed.run(images, batch=1)).max())
    if not difference <= rewrites.PARITY_LIMIT * float(np.abs(expected).max()):
        target.unlink()
        raise ExportError(
            f"{target.name}: with a fixed batch the logits differ from those of {source.name} by {difference:.3g}"
        )
    return difference


def parity(model: nn.Module, path: Path, images: np.ndarray, *, batch: int = 64) -> Parity:
    """Compare the file with the network on real images.

    Args:
        model: the network, in eval mode.
        path: its file.
        images: uint8 (N, H, W, 3), at least one.
        batch: images at a time.

    Raises:
        ExportError: there are no images, or a logit is not finite.
    """
    if len(images) == 0:
        raise ExportError("parity needs at least one image")
    runtime = Model.load(path)
    expected = _torch_logits(_frozen(model), images, runtime.contract, batch)
    found = runtime.run(images, batch)
    difference = np.abs(expected.astype(np.float64) - found)
    if not np.isfinite(difference).all():
        raise ExportError(f"{path.name}: logits that are not finite")
    agreement = float((expected.argmax(1) == found.argmax(1)).mean())
    return Parity(
        max_abs_diff=float(difference.max()),
        mean_abs_diff=float(difference.mean()),
        agreement=agreement,
        images=len(images),
        predictions=found.argmax(1),
        largest=float(np.abs(expected).max()),
    )


def _frozen(model: nn.Module) -> nn.Module:
    """Return a copy on the CPU, so that device, hooks and gradients of the caller's module stay untouched."""
    import torch

    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        raise ExportError(f"the network is in training mode ({training[0]}): call eval() before exporting")
    return copy.deepcopy(model).cpu().float().to(memory_format=torch.contiguous_format).requires_grad_(False)


def _with_pixels(network: nn.Module, contract: Contract) -> nn.Module:
    """Return the network behind a module that turns uint8 (N, H, W, 3) into its input."""
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
            # Bytes are transposed before they become floats of four times their size. Without `contiguous` the strides
            # would be those of channels_last, for which the exporter writes the adaptive pool as a Gather of computed
            # indices.
            pixels = image.permute(0, 3, 1, 2).contiguous().to(torch.float32)
            logits: Tensor = self.network(pixels * self.scale + self.shift)
            return logits

    return FromPixels().eval()


def _trace(network: nn.Module, contract: Contract, opset: int) -> ModelProto:
    import torch

    size = contract.image_size
    pixels = contract.layout == "uint8_nhwc"
    # Two images, because a batch of one could become a constant.
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
    """Silence the exporter, which prints progress and warns about its own internals; the file is checked instead."""
    with quiet(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _torch_logits(network: nn.Module, images: np.ndarray, contract: Contract, batch: int) -> np.ndarray:
    """Return logits of images normalised by the definition, (x / 255 - mean) / std, not by `scale_and_shift`."""
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
    """Check on batches of 1, 3 and 8 that the batch is dynamic and that the file computes what the network computes."""
    runtime = Model.load(path)
    generator = np.random.default_rng(0)
    for batch in (1, 3, 8):
        images = generator.integers(0, 256, (batch, contract.image_size, contract.image_size, 3), dtype=np.uint8)
        expected = _torch_logits(network, images, contract, batch)
        found = runtime.run(images, batch)
        difference = float(np.abs(expected - found).max())
        if not difference <= PARITY_LIMIT * max(1.0, float(np.abs(expected).max())):
            raise ExportError(f"{path.name}: logits differ from the network's by {difference:.3g} at batch {batch}")
