"""BatchNorm with the sum and the activation behind it in one pass over memory, for a student that trains on a CPU.

The kernels are in batch_norm.c. As torch's operators these layers are a third of a compact network's step: each reads
and writes whole maps, and channel counts that are no multiple of the vector width (12, 58, 72, 116) are slow.
Statistics and gradients are summed in double precision over chunks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from compress.models.residual_add import ResidualAdd
from compress.training.kernels.followers import followers
from compress.training.kernels.library import TYPES, KernelLibrary

# Numbers in a map: for fewer, a second thread costs more than it brings.
MIN_NUMBERS_FOR_THREADS = 2**14
BOUNDS = {nn.ReLU: (0.0, math.inf), nn.ReLU6: (0.0, 6.0)}
NO_BOUNDS = (-math.inf, math.inf)


class _BatchNorm(torch.autograd.Function):
    """min(max(batch_norm(x) + added, low), high) with the batch's own statistics; the running ones are updated.

    x and added: float32 or bfloat16 (N, C, H, W), both of one type and channels_last; added None: nothing is added.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        added: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        layer: nn.BatchNorm2d,
        bounds: tuple[float, float],
        kernels: KernelLibrary,
    ) -> Tensor:
        n, c, h, w = x.shape
        threads = torch.get_num_threads() if x.numel() > MIN_NUMBERS_FOR_THREADS else 1
        # Rows of `found`: mean, 1 / deviation, slope, offset.
        found, out = torch.empty(4, c), torch.empty_like(x)
        first, row = found.data_ptr(), 4 * c
        running = layer.running_mean.data_ptr(), layer.running_var.data_ptr()  # type: ignore[union-attr]
        failed = kernels.forward[x.dtype](
            x.data_ptr(),
            None if added is None else added.data_ptr(),
            n * h * w,
            c,
            weight.data_ptr(),
            bias.data_ptr(),
            layer.eps,
            layer.momentum,
            *bounds,
            *running,
            first,
            first + row,
            first + 2 * row,
            first + 3 * row,
            out.data_ptr(),
            threads,
        )
        if failed:
            raise MemoryError("a BatchNorm's working memory")
        # With a sum, only the output tells what passed the activation.
        masked = added is not None and bounds != NO_BOUNDS
        ctx.save_for_backward(x, out if masked else None)
        ctx.rest = found, added is not None, bounds, kernels, threads
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, y = ctx.saved_tensors
        found, summed, bounds, kernels, threads = ctx.rest
        n, c, h, w = x.shape
        gradient = gradient.to(x.dtype).contiguous(memory_format=torch.channels_last)
        through = gradient if y is None else torch.empty_like(x)
        out, own = torch.empty_like(x), torch.empty(2, c)
        first, row = found.data_ptr(), 4 * c
        failed = kernels.backward[x.dtype](
            gradient.data_ptr(),
            x.data_ptr(),
            None if y is None else y.data_ptr(),
            n * h * w,
            c,
            first,
            first + row,
            first + 2 * row,
            first + 3 * row,
            *bounds,
            out.data_ptr(),
            None if y is None else through.data_ptr(),
            own.data_ptr(),
            own.data_ptr() + row,
            threads,
        )
        if failed:
            raise MemoryError("a BatchNorm's working memory")
        return out, through if summed else None, own[0], own[1], None, None, None


def fuse_batch_norms(student: nn.Module, image_size: int, kernels: KernelLibrary) -> Callable[[], None]:
    """Train the student's BatchNorms by the C kernels, each with the sum and the activation that alone read it.

    The sum is a `ResidualAdd`, the activation a ReLU or ReLU6. A layer without running statistics, or one that is not
    float32, is left alone; so is what follows a layer where a hook reads the map between. In evaluation, and for maps
    that are not channels_last, torch computes.

    Args:
        student: the network, on the CPU.
        image_size: side of its input in pixels.
        kernels: the compiled functions.

    Returns:
        What puts torch's operators back.
    """
    behind = followers(student, image_size, (ResidualAdd, *BOUNDS))
    changed: list[nn.Module] = []
    for layer in student.modules():
        if not isinstance(layer, nn.BatchNorm2d) or not _supported(layer):
            continue
        found = behind.get(layer, [])
        activation = found[-1] if found and type(found[-1]) in BOUNDS else None
        forward = _forward(layer, activation, kernels)
        if found and type(found[0]) is ResidualAdd:
            layer.forward = _same  # type: ignore[assignment,method-assign]
            found[0].forward = forward  # type: ignore[method-assign]
        else:
            layer.forward = forward  # type: ignore[method-assign]
        if activation is not None:
            activation.forward = _same
        changed += [layer, *found]

    def undo() -> None:
        for module in changed:
            module.__dict__.pop("forward", None)

    return undo


def _supported(layer: nn.BatchNorm2d) -> bool:
    if type(layer) is not nn.BatchNorm2d or layer.momentum is None:
        return False
    values = (layer.weight, layer.bias, layer.running_mean)
    return all(value is not None and value.dtype == torch.float32 and value.device.type == "cpu" for value in values)


def _same(x: Tensor) -> Tensor:
    return x


def _forward(layer: nn.BatchNorm2d, activation: nn.Module | None, kernels: KernelLibrary) -> Callable[..., Tensor]:
    """Return what computes the layer, the sum behind it where it gets a second argument, and the activation."""
    plain = layer.forward
    bounds = NO_BOUNDS if activation is None else BOUNDS[type(activation)]
    activate = _same if activation is None else activation.forward
    counted, weight, bias = layer.num_batches_tracked, layer.weight, layer.bias
    assert counted is not None

    def fits(x: Tensor) -> bool:
        return x.dtype in TYPES and x.is_contiguous(memory_format=torch.channels_last)

    def forward(x: Tensor, added: Tensor | None = None) -> Tensor:
        alike = added is None or (added.dtype == x.dtype and added.shape == x.shape and fits(added))
        # A single value per channel has no statistics, and torch raises the error for it.
        several = x.numel() > x.shape[1]
        if not (layer.training and torch.is_grad_enabled() and fits(x) and alike and several):
            out: Tensor = activate(plain(x) if added is None else plain(x) + added)
            return out
        counted.add_(1)
        out = _BatchNorm.apply(x, added, weight, bias, layer, bounds, kernels)
        assert isinstance(out, Tensor)
        return out

    return forward
