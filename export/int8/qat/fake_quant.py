"""Fake quantisation: the float values that an int8 file really computes with, and gradients for values and ranges.

The arithmetic is that of onnxruntime's quantiser and of QuantizeLinear / DequantizeLinear (division by a float32 scale,
round half to even), so a simulation made of it answers like the file. Gradients pass straight through the rounding.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

TINY = torch.finfo(torch.float32).tiny


def scale_and_zero_point(low: Tensor, high: Tensor, least: int, most: int) -> tuple[Tensor, Tensor]:
    """Return scale and zero point of a range, as the quantiser sets them.

    Args:
        low: float32 (), at most 0.
        high: float32 (), at least 0.
        least: the smallest integer.
        most: the largest integer.

    Returns:
        The scale, float32 (), and the zero point, a whole float32 ().
    """
    device, low, high = low.device, _double(low), _double(high)
    scale = (high - low) / (most - least)
    empty = scale < TINY
    zero_point = torch.where(
        empty, torch.zeros_like(scale), torch.round(least - low / torch.where(empty, torch.ones_like(scale), scale))
    )
    return torch.where(empty, torch.ones_like(scale), scale).float().to(device), zero_point.float().to(device)


class _Activation(torch.autograd.Function):
    """`quantize_activation` with its gradients."""

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
    """Round activations to the levels of a range, with gradients for values and range.

    Inside the range d/dx = 1 and each end moves with the rounding error; outside only the nearer end moves. The ends'
    gradients are divided by sqrt(values an image x levels), so that one learning rate suits weights and ranges.
    Source: Esser et al. 2020, "Learned step size quantization", eq. 3 and section 2.2; Bhalgat et al. 2020 (LSQ+), here
    for the two ends.

    Args:
        x: activations (N, ...).
        low: float32 (), the left end of the range.
        high: float32 (), the right end.
        least: the smallest integer.
        most: the largest integer.
    """
    rounded: Tensor = _Activation.apply(x, low, high, least, most)
    return rounded


def weight_scale(weight: Tensor, levels: int, axis: int | None) -> Tensor:
    """Return max|w| / levels of each channel.

    Args:
        weight: any shape with C channels along `axis`.
        levels: the largest integer.
        axis: of the channels; None: one scale for the tensor.

    Returns:
        float32 of shape (1, ..., C, ..., 1), or () for the tensor.
    """
    weight = weight.detach()
    others = [place for place in range(weight.ndim) if place != axis]
    largest = weight.abs().max() if axis is None else weight.abs().amax(dim=others, keepdim=True)
    scale = (_double(largest) * 2 / (2 * levels)).float().to(weight.device)
    return torch.where(scale < TINY, torch.ones_like(scale), scale)


def quantize_weight(weight: Tensor, scale: Tensor, levels: int) -> Tensor:
    """Round weights to the levels -levels..levels of `scale`; d/dw = 1.

    The quantiser sets the scale in the same way from the trained weights, so there is nothing else to learn.

    Args:
        weight: the weights.
        scale: of `weight_scale`.
        levels: the largest integer.
    """
    return _straight(weight, torch.round(weight.detach() / scale).clamp_(-levels, levels).mul_(scale))


def quantize_bias(bias: Tensor, scale: Tensor) -> Tensor:
    """Round a bias (C,) to multiples of `scale`, that of the products it is added to; d/db = 1.

    Nothing is clipped, because a bias has 32 bits.
    """
    upcast = _double(bias.detach())
    scale = scale.reshape(-1).to(upcast.device)
    return _straight(bias, (torch.round(upcast / scale) * scale).float().to(bias.device))


def _double(value: Tensor) -> Tensor:
    """Return the value as float64; on the CPU if the device has no float64 (mps)."""
    return (value.cpu() if value.device.type == "mps" else value).double()


def _straight(value: Tensor, rounded: Tensor) -> Tensor:
    """Return `rounded` with the gradient of `value`; a difference of close floats is exact, so nothing is lost."""
    return value + (rounded - value.detach()) if value.requires_grad and torch.is_grad_enabled() else rounded
