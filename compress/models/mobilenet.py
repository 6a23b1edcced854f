"""MobileNetV2 for small images, as in the distillation papers, and MobileNetV1 for their ImageNet pair.

Source of V2: Sandler et al. 2018 with the benchmarks' differences ("mobile_half" at width 0.5): ReLU instead of ReLU6,
no dropout, a stem of stride 2 and a second group that keeps its resolution (total stride 16), channels int(c * width)
without rounding to 8, an expansion convolution even at t = 1, and 1280 last channels up to width 1. Source of V1:
Howard et al. 2017.
"""

from __future__ import annotations

from torch import Tensor, nn

from compress.models.residual_add import ResidualAdd
from compress.models.weight_init import initialise

# Expansion t, channels c, units n, stride s of the first unit.
SETTINGS = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

# V1: channels and stride of the depthwise separable units.
V1_UNITS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))


class InvertedResidual(nn.Module):
    """Expand (1x1), filter each channel (3x3 depthwise), project (1x1, linear); a shortcut if the shape stays."""

    def __init__(self, width_in: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = width_in * expansion
        self.shortcut = stride == 1 and width_in == width
        self.conv = nn.Sequential(
            nn.Conv2d(width_in, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        if self.shortcut:
            self.sum = ResidualAdd()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C, H / stride, W / stride); no activation at the end."""
        out: Tensor = self.sum(self.conv(x), x) if self.shortcut else self.conv(x)
        return out


class MobileNetV2(nn.Module):
    """Stem (stride 2), seven groups of inverted residuals, a 1x1 convolution, pooling, Linear."""

    def __init__(self, width: float, classes: int) -> None:
        super().__init__()
        stem, last = int(32 * width), 1280 if width <= 1 else int(1280 * width)
        self.conv1 = _conv_bn_relu(3, stem, kernel=3, stride=2)
        groups, width_in = [], stem
        for expansion, base, units, stride in SETTINGS:
            channels = int(base * width)
            first = InvertedResidual(width_in, channels, stride, expansion)
            groups.append(
                nn.Sequential(first, *(InvertedResidual(channels, channels, 1, expansion) for _ in range(units - 1)))
            )
            width_in = channels
        self.blocks = nn.Sequential(*groups)
        self.conv2 = _conv_bn_relu(width_in, last, kernel=1, stride=1)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(last, classes)
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, K)."""
        x = self.conv2(self.blocks(self.conv1(x)))
        logits: Tensor = self.classifier(self.avgpool(x).flatten(1))
        return logits


class MobileNetV1(nn.Module):
    """A stem of stride 2, 13 units of a depthwise 3x3 and a 1x1 convolution, pooling, Linear; PyTorch's own init."""

    def __init__(self, width: float, classes: int) -> None:
        super().__init__()
        stem, units = int(32 * width), [(int(base * width), stride) for base, stride in V1_UNITS]
        before = [stem, *(channels for channels, _ in units)]
        made = (_separable(width_in, *unit) for width_in, unit in zip(before, units, strict=False))
        self.blocks = nn.Sequential(_conv_bn_relu(3, stem, kernel=3, stride=2), *made)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(before[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, K)."""
        logits: Tensor = self.fc(self.avgpool(self.blocks(x)).flatten(1))
        return logits


def _separable(width_in: int, width: int, stride: int) -> nn.Sequential:
    depthwise = nn.Conv2d(width_in, width_in, 3, stride, 1, groups=width_in, bias=False)
    pointwise = nn.Conv2d(width_in, width, 1, bias=False)
    return nn.Sequential(depthwise, nn.BatchNorm2d(width_in), nn.ReLU(), pointwise, nn.BatchNorm2d(width), nn.ReLU())


def _conv_bn_relu(width_in: int, width: int, *, kernel: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(width_in, width, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU())
