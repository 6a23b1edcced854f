"""Wide ResNets for small images: depth 6 n + 4, pre-activation blocks, three stages.

Source: Zagoruyko, Komodakis 2016, as in the distillation benchmarks: no dropout, a stem without BatchNorm, and a bare
1x1 convolution of the activated input as projection shortcut. Stage outputs are raw sums with negative values;
`block2.0.bn1:out` is stage 1 before its ReLU.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compress.models.weight_init import init_by_fan_out

STEM = 16


class PreactBlock(nn.Module):
    """BatchNorm, ReLU and a 3x3 convolution, twice, then the sum, without an activation after it."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(width_in, width, 1, stride, bias=False) if width_in != width else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C, H / stride, W / stride)."""
        activated = self.relu1(self.bn1(x))
        y = self.conv2(self.relu2(self.bn2(self.conv1(activated))))
        out: Tensor = y + (x if self.shortcut is None else self.shortcut(activated))
        return out


class WideResNet(nn.Module):
    """A stem, three stages of n PreactBlocks, BatchNorm, ReLU, pooling, Linear."""

    def __init__(self, depth: int, times: int, classes: int) -> None:
        super().__init__()
        widths = (16 * times, 32 * times, 64 * times)
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, STEM, 3, 1, 1, bias=False)
        self.block1 = _stage(STEM, widths[0], blocks, stride=1)
        self.block2 = _stage(widths[0], widths[1], blocks, stride=2)
        self.block3 = _stage(widths[1], widths[2], blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[2], classes)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, K)."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        logits: Tensor = self.fc(self.avgpool(self.relu(self.bn1(x))).flatten(1))
        return logits


def _stage(width_in: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        PreactBlock(width_in, width, stride), *(PreactBlock(width, width, 1) for _ in range(blocks - 1))
    )


@torch.no_grad()
def _initialise(module: nn.Module) -> None:
    """Initialize convolutions by their fan out; the classifier keeps PyTorch's default, with bias 0."""
    if isinstance(module, nn.Conv2d):
        init_by_fan_out(module)
    elif isinstance(module, nn.Linear):
        module.bias.zero_()
