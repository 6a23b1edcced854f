"""Fake quantisation: the float values that an int8 file really computes with, and gradients for values and ranges.

The arithmetic is that of onnxruntime's quantiser and of QuantizeLinear / DequantizeLinear (division by a float32 scale, round half to
even), so a simulation made of it answers like the file. Gradients pass straight through the rounding.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

TINY = torch.finfo(torch.float32).tiny


def scale_and_zero_point(low: Tensor, high: Tensor, least: int, most: int) -> tuple[Tensor, Tensor]:
    """Of a range low <= 0 <= high, float32 (): the scale float32 () and the zero point, a whole float32 (), as the quantiser sets them."""
    device, low, high = low.device, _double(low), _double(high)
    scale = (high - low) / (most - least)
    empty = scale < TINY
    zero_point = torch.where(
        empty, torch.zeros_like(scale), torch.round(least - low / torch.where(empty, torch.ones_like(scale), scale))
    )
    return torch.where(empty, torch.ones_like(scale), scale).float().to(device), zero_point.float().to(device)


class _Activation(torch.autograd.Function):
    """`quantize_activation`'s gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, high: Tensor, least: int, most: int) -> Tensor:
        scale, zero_point = scale_and_zero_point(low, high, least, most)
        ctx.save_for_backward(x, scale, zero_point)
        ctx.levels = least, most
        return torch.round(x / scale).clamp_(least - zero_point, most - zero_point).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, zero_point = ctx.saved_tensors
        least, most = ctx.levels
        position = x / scale
        level = torch.round(position)
        below, above = level < least - zero_point, level > most - zero_point
        inside = gradient.masked_fill(below | above, 0)
        step = (inside * (level - position)).sum() / (most - least)
        damping = 1 / math.sqrt(max(1, x[0].numel()) * (most - least))
        to_low = damping * ((gradient * below).sum() - step)
        to_high = damping * ((gradient * above).sum() + step)
        return inside, to_low, to_high, None, None


def quantize_activation(x: Tensor, low: Tensor, high: Tensor, least: int, most: int) -> Tensor:
    """x (N, ...) on the levels `least` to `most` of the range [low, high], float32 (); gradients for all three.

    Inside the range d/dx = 1 and each end moves with the rounding error, outside the nearer end alone. The ends' gradients are divided
    by sqrt(values a picture x levels), so that one learning rate suits weights and ranges.
    Source: Esser et al. 2020, "Learned step size quantization", eq. 3 and section 2.2; Bhalgat et al. 2020 (LSQ+), here for the two ends.
    """
    return _Activation.apply(x, low, high, least, most)


def weight_scale(weight: Tensor, levels: int, axis: int | None) -> Tensor:
    """max|w| / levels of each channel along `axis`, or (None) of the tensor; float32, of shape (1, ..., C, ..., 1) or ()."""
    weight = weight.detach()
    others = [place for place in range(weight.ndim) if place != axis]
    largest = weight.abs().max() if axis is None else weight.abs().amax(dim=others, keepdim=True)
    scale = (_double(largest) * 2 / (2 * levels)).float().to(weight.device)
    return torch.where(scale < TINY, torch.ones_like(scale), scale)


def quantize_weight(weight: Tensor, scale: Tensor, levels: int) -> Tensor:
    """Weights on the levels -levels..levels of `scale`; d/dw = 1.

    The quantiser will set the scale in the same way from the weights that training leaves, so there is nothing else to learn.
    """
    return _straight(weight, torch.round(weight.detach() / scale).clamp_(-levels, levels).mul_(scale))


def quantize_bias(bias: Tensor, scale: Tensor) -> Tensor:
    """A bias (C,) on multiples of `scale`, that of the products it is added to; 32 bits, so it never leaves them; d/db = 1."""
    wide = _double(bias.detach())
    scale = scale.reshape(-1).to(wide.device)
    return _straight(bias, (torch.round(wide / scale) * scale).float().to(bias.device))


def _double(value: Tensor) -> Tensor:
    """float64; on the CPU where the device has none (mps)."""
    return (value.cpu() if value.device.type == "mps" else value).double()


def _straight(value: Tensor, rounded: Tensor) -> Tensor:
    """`rounded`, with the gradient of `value`: a difference of neighbours is exact, so nothing is lost in the sum."""
    return value + (rounded - value.detach()) if value.requires_grad and torch.is_grad_enabled() else rounded
