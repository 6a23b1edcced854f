"""How the networks of the distillation benchmarks begin, as their authors' code draws it."""

from __future__ import annotations

import math

import torch
from torch import nn


@torch.no_grad()
def init_by_fan_out(convolution: nn.Conv2d) -> None:
    """Normal, deviation sqrt(2 / (k k C_out)); of a depthwise convolution too."""
    height, width = convolution.kernel_size
    convolution.weight.normal_(0, math.sqrt(2 / (height * width * convolution.out_channels)))


@torch.no_grad()
def initialise(module: nn.Module) -> None:
    """A convolution by its fan out, deviation 0.01 for the classifier; biases 0. Other modules stay as they are."""
    if isinstance(module, nn.Conv2d):
        init_by_fan_out(module)
    elif isinstance(module, nn.Linear):
        module.weight.normal_(0, 0.01)
    if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
        module.bias.zero_()
