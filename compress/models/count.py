"""Counts of a network's parameters and multiply-accumulates."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def params(model: nn.Module) -> int:
    """Count the parameters, shared ones once; buffers do not count."""
    return sum(parameter.numel() for parameter in model.parameters())


def macs(model: nn.Module, image_size: int) -> int:
    """Count the multiply-accumulates of convolutions and linear layers for one (3, image_size, image_size) image.

    The model runs once, on the device of its parameters (on the meta device nothing is computed), and stays as it is.
    """
    total = 0

    def count(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        assert isinstance(module.weight, Tensor)
        total += output.numel() * module.weight[0].numel()  # an output value costs one row of the weight matrix

    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    modes = [(module, module.training) for module in model.modules()]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        model.eval()
        with torch.no_grad():
            first = next(model.parameters())
            model(torch.zeros(1, 3, image_size, image_size, device=first.device, dtype=first.dtype))
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    return total
