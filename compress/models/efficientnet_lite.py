"""EfficientNet-Lite for photos: MobileNetV2's blocks in EfficientNet's proportions.

ReLU6 and no squeeze-and-excitation, so that int8 loses little. Source: Tan and Le 2019, and the "lite" models of its
authors: stem and last convolution keep their width, the first and the last stage their depth. Module names are those of
the published PyTorch checkpoints without underscores, so `checkpoints.load_state` takes these files unchanged; their
pixels are (x - 127) / 128. Training here has no stochastic depth.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.models.residual_add import ResidualAdd
from compress.models.weight_init import initialise

# Expansion t, kernel k, stride s of the first unit, channels c, units n.
SETTINGS = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
# Width, depth, dropout, by variant.
SCALES = {0: (1.0, 1.0, 0.2), 1: (1.0, 1.1, 0.2), 2: (1.1, 1.2, 0.3), 3: (1.2, 1.4, 0.3), 4: (1.4, 1.8, 0.3)}
STEM, LAST = 32, 1280


def channels_of(base: int, width: float) -> int:
    """Return the multiple of 8 that is nearest to base * width, at most a tenth below it."""
    wanted = base * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


def depths(variant: int) -> tuple[int, ...]:
    """Return the number of units of each of the seven stages."""
    depth = SCALES[variant][1]
    last = len(SETTINGS) - 1
    return tuple(
        units if stage in (0, last) else math.ceil(units * depth) for stage, (*_, units) in enumerate(SETTINGS)
    )


class SameConv2d(nn.Conv2d):
    """A convolution without bias whose output has ceil(side / stride) cells; an odd row of padding goes to the end."""

    def __init__(self, width_in: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(width_in, width, kernel, stride, kernel // 2 if stride == 1 else 0, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C, ceil(H / stride), ceil(W / stride))."""
        if self.stride[0] > 1:
            (top, bottom), (left, right) = (self._around(side) for side in x.shape[2:])
            x = functional.pad(x, (left, right, top, bottom))
        return super().forward(x)

    def _around(self, side: int) -> tuple[int, int]:
        kernel, stride = self.kernel_size[0], self.stride[0]
        total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
        return total // 2, total - total // 2


class Block(nn.Module):
    """Expand (1x1), filter each channel (depthwise), project (1x1, linear); a shortcut if the shape stays."""

    def __init__(self, width_in: int, width: int, *, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = width_in * expansion
        self.shortcut = stride == 1 and width_in == width
        self.expands = expansion != 1
        if self.expands:
            self.expand_conv, self.bn0, self.relu0 = SameConv2d(width_in, hidden, 1), _norm(hidden), nn.ReLU6()
        self.depthwise_conv, self.bn1, self.relu1 = (
            SameConv2d(hidden, hidden, kernel, stride, hidden),
            _norm(hidden),
            nn.ReLU6(),
        )
        self.project_conv, self.bn2 = SameConv2d(hidden, width, 1), _norm(width)
        if self.shortcut:
            self.sum = ResidualAdd()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C, ceil(H / stride), ceil(W / stride)); no activation at the end."""
        inner = self.relu0(self.bn0(self.expand_conv(x))) if self.expands else x
        inner = self.relu1(self.bn1(self.depthwise_conv(inner)))
        inner = self.bn2(self.project_conv(inner))
        out: Tensor = self.sum(inner, x) if self.shortcut else inner
        return out


class EfficientNetLite(nn.Module):
    """Stem (stride 2), seven stages of blocks in one row, a 1x1 convolution, pooling, dropout and Linear."""

    def __init__(self, variant: int, classes: int) -> None:
        super().__init__()
        width, _, dropout = SCALES[variant]
        self.conv_stem, self.bn0, self.relu0 = SameConv2d(3, STEM, 3, 2), _norm(STEM), nn.ReLU6()
        blocks, width_in = [], STEM
        for (expansion, kernel, stride, base, _), units in zip(SETTINGS, depths(variant), strict=True):
            channels = channels_of(base, width)
            for unit in range(units):
                blocks.append(
                    Block(width_in, channels, kernel=kernel, stride=stride if unit == 0 else 1, expansion=expansion)
                )
                width_in = channels
        self.blocks = nn.Sequential(*blocks)
        self.conv_head, self.bn1, self.relu1 = SameConv2d(width_in, LAST, 1), _norm(LAST), nn.ReLU6()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(LAST, classes))
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, K)."""
        x = self.relu0(self.bn0(self.conv_stem(x)))
        x = self.relu1(self.bn1(self.conv_head(self.blocks(x))))
        logits: Tensor = self.classifier(torch.flatten(self.avgpool(x), 1))
        return logits


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3, momentum=0.01)


BUILDERS: dict[str, Callable[..., nn.Module]] = {
    f"efficientnet_lite{variant}": partial(EfficientNetLite, variant) for variant in SCALES
}
