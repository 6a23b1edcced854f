"""Gradients of depthwise convolutions on a CPU by the paths that are fast there.

oneDNN (3.x, in torch 2.15) has no fast kernel for three of them, and takes 10 to 100 times as long: the input's gradient in bfloat16 where the stride is
not 1, the weight's where a map is narrower than three places, and the weight's in bfloat16 where the kernel is not 3x3. Each has a way around with the same
sums: a gradient spread with zeros and stride 1; a map padded with zeros; float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

NARROW, ROOM = 2, 2  # places: a map that is slow, and what is put beside it


class _Depthwise(torch.autograd.Function):
    """conv2d of x (N, C, H, W) and weight (C, 1, k, k), one filter a channel, without bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return functional.conv2d(x, weight, None, stride, padding, 1, weight.shape[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        of_x = _of_input(gradient, x, weight, ctx.stride, ctx.padding) if ctx.needs_input_grad[0] else None
        return (
            of_x,
            _of_weight(gradient, x, weight, ctx.stride, ctx.padding) if ctx.needs_input_grad[1] else None,
            None,
            None,
        )


def _gradient(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int], which: int
) -> Tensor:
    wanted = [which == 0, which == 1, False]
    return torch.ops.aten.convolution_backward(
        gradient, x, weight, None, stride, padding, (1, 1), False, (0, 0), weight.shape[0], wanted
    )[which]


def _of_input(gradient: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    if stride == (1, 1) or gradient.dtype != torch.bfloat16:
        return _gradient(gradient, x, weight, stride, padding, 0)
    height, width = (
        side + 2 * pad - kernel + 1 for side, pad, kernel in zip(x.shape[2:], padding, weight.shape[2:], strict=True)
    )
    spread = torch.empty((*x.shape[:2], height, width), dtype=gradient.dtype, memory_format=torch.channels_last).zero_()
    spread[:, :, :: stride[0], :: stride[1]] = gradient
    return _gradient(spread, x, weight, (1, 1), padding, 0)


def _of_weight(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    if weight.shape[2:] != (3, 3) and gradient.dtype == torch.bfloat16:
        return _gradient(gradient.float(), x.float(), weight.float(), stride, padding, 1).to(weight.dtype)
    if stride == (1, 1) and padding == (1, 1) and weight.shape[2:] == (3, 3) and min(x.shape[2:]) <= NARROW:
        around = (0, ROOM, 0, ROOM)
        return _gradient(functional.pad(gradient, around), functional.pad(x, around), weight, stride, padding, 1)
    return _gradient(gradient, x, weight, stride, padding, 1)


def reroute(student: nn.Module) -> Callable[[], None]:
    """The student's depthwise convolutions get these gradients; what is returned puts torch's back. Values stay what they are."""
    changed = []
    for layer in student.modules():
        # a subclass may compute otherwise
        if isinstance(layer, nn.Conv2d) and type(layer)._conv_forward is nn.Conv2d._conv_forward and _depthwise(layer):
            layer._conv_forward = _forward(layer)  # type: ignore[assignment]
            changed.append(layer)

    def off() -> None:
        for layer in changed:
            layer.__dict__.pop("_conv_forward", None)

    return off


def _depthwise(layer: nn.Conv2d) -> bool:
    plain = (
        layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and layer.bias is None
    )
    return plain and 1 < layer.groups == layer.in_channels == layer.out_channels and layer.weight.device.type == "cpu"


def _forward(layer: nn.Conv2d) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    stride, padding, plain = layer.stride, layer.padding, layer._conv_forward
    quick = stride == (1, 1) and padding == (1, 1) and layer.kernel_size == (3, 3)  # in oneDNN too, but on narrow maps

    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if quick and min(x.shape[2:]) > NARROW:
            return plain(x, weight, bias)
        if torch.is_autocast_enabled("cpu"):
            low = torch.get_autocast_dtype("cpu")
            x, weight = x.to(low), weight.to(low)
        out = _Depthwise.apply(x, weight, stride, padding)
        assert isinstance(out, Tensor)
        return out

    return forward
