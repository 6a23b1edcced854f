"""Gradients of depthwise convolutions on a CPU, computed in ways that are fast there.

oneDNN (3.x, in torch 2.15) has no fast kernel for three of them and takes 10 to 100 times as long:

- the input's gradient in bfloat16 where the stride is not 1: spread the gradient with zeros and use stride 1;
- the weight's gradient where a map is narrower than three pixels: pad the map with zeros;
- the weight's gradient in bfloat16 where the kernel is not 3x3: use float32.

Each way around computes the same sums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# Pixels: the side up to which a map is slow, and how much padding makes it fast.
NARROW_SIDE, PADDING = 2, 2

Pair = tuple[int, int]


class _Depthwise(torch.autograd.Function):
    """conv2d of x (N, C, H, W) and weight (C, 1, k, k), one filter per channel, without bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return functional.conv2d(x, weight, None, stride, padding, 1, weight.shape[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight = None, None
        if ctx.needs_input_grad[0]:
            for_x = _input_gradient(gradient, x, weight, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[1]:
            for_weight = _weight_gradient(gradient, x, weight, ctx.stride, ctx.padding)
        return for_x, for_weight, None, None


def _convolution_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, which: int
) -> Tensor:
    """Return torch's own gradient of the input (`which` 0) or the weight (1)."""
    wanted = [which == 0, which == 1, False]
    gradients: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, stride, padding, (1, 1), False, (0, 0), weight.shape[0], wanted
    )
    return gradients[which]


def _input_gradient(gradient: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    if stride == (1, 1) or gradient.dtype != torch.bfloat16:
        return _convolution_backward(gradient, x, weight, stride, padding, 0)
    height, width = (
        side + 2 * pad - kernel + 1 for side, pad, kernel in zip(x.shape[2:], padding, weight.shape[2:], strict=True)
    )
    spread = torch.empty((*x.shape[:2], height, width), dtype=gradient.dtype, memory_format=torch.channels_last).zero_()
    spread[:, :, :: stride[0], :: stride[1]] = gradient
    return _convolution_backward(spread, x, weight, (1, 1), padding, 0)


def _weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    if weight.shape[2:] != (3, 3) and gradient.dtype == torch.bfloat16:
        wide = _convolution_backward(gradient.float(), x.float(), weight.float(), stride, padding, 1)
        return wide.to(weight.dtype)
    if stride == (1, 1) and padding == (1, 1) and weight.shape[2:] == (3, 3) and min(x.shape[2:]) <= NARROW_SIDE:
        around = (0, PADDING, 0, PADDING)
        gradient, x = functional.pad(gradient, around), functional.pad(x, around)
    return _convolution_backward(gradient, x, weight, stride, padding, 1)


def use_fast_gradients(student: nn.Module) -> Callable[[], None]:
    """Give the student's depthwise convolutions these gradients; return what puts torch's back."""
    changed = []
    for layer in student.modules():
        # A subclass may compute something else.
        if isinstance(layer, nn.Conv2d) and type(layer)._conv_forward is nn.Conv2d._conv_forward and _depthwise(layer):
            layer._conv_forward = _forward(layer)  # type: ignore[assignment]
            changed.append(layer)

    def undo() -> None:
        for layer in changed:
            layer.__dict__.pop("_conv_forward", None)

    return undo


def _depthwise(layer: nn.Conv2d) -> bool:
    plain = (
        layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and layer.bias is None
    )
    return plain and 1 < layer.groups == layer.in_channels == layer.out_channels and layer.weight.device.type == "cpu"


def _forward(layer: nn.Conv2d) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    stride, padding = layer.stride, layer.padding
    plain: Callable[[Tensor, Tensor, Tensor | None], Tensor] = layer._conv_forward
    # oneDNN is fast here too, except on narrow maps.
    fast = stride == (1, 1) and padding == (1, 1) and layer.kernel_size == (3, 3)

    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if fast and min(x.shape[2:]) > NARROW_SIDE:
            return plain(x, weight, bias)
        if torch.is_autocast_enabled("cpu"):
            low = torch.get_autocast_dtype("cpu")
            x, weight = x.to(low), weight.to(low)
        out = _Depthwise.apply(x, weight, stride, padding)
        assert isinstance(out, Tensor)
        return out

    return forward
