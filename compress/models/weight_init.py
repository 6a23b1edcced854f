"""Weight initialization of the distillation benchmarks' networks, as in their authors' code."""

from __future__ import annotations

import math

import torch
from torch import nn


@torch.no_grad()
def init_by_fan_out(convolution: nn.Conv2d) -> None:
    """Draw from a normal distribution with deviation sqrt(2 / (k k C_out)), for depthwise convolutions too."""
    height, width = convolution.kernel_size
    convolution.weight.normal_(0, math.sqrt(2 / (height * width * convolution.out_channels)))


@torch.no_grad()
def initialise(module: nn.Module) -> None:
    """Initialize a convolution by its fan out, a Linear with deviation 0.01, biases with 0; skip other modules."""
    if isinstance(module, nn.Conv2d):
        init_by_fan_out(module)
    elif isinstance(module, nn.Linear):
        module.weight.normal_(0, 0.01)
    if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
        module.bias.zero_()
