"""ShuffleNetV1 and V2 for small images: a 1x1 stem and no pooling before the stages. PyTorch's default initialization.

Source: Zhang et al. 2018 and Ma et al. 2018, with the distillation benchmarks' stem; their V1 also has a ReLU after the
depthwise convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compress.models.residual_add import ResidualAdd

# Units of each stage; channels of stages 1 to 3 and, by width, of the last convolution.
V1_UNITS, V1_CHANNELS, V1_GROUPS = (4, 8, 4), (240, 480, 960), 3
V2_UNITS = (4, 8, 4)  # including the down unit
V2_CHANNELS = {
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (244, 488, 976, 2048),
}
STEM = 24


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channel groups: channel (g, c) of (N, G C, H, W) moves to (c, g)."""
    batch, channels, height, width = x.shape
    if x.requires_grad and x.is_contiguous(memory_format=torch.channels_last) and not torch.compiler.is_compiling():
        # Memory stays channels_last, so that training needs no change of layout afterwards, forward or backward.
        grouped = torch.unflatten(x.permute(0, 2, 3, 1), 3, (groups, -1))
        return grouped.transpose(3, 4).flatten(3).permute(0, 3, 1, 2)
    return (
        x.view(batch, groups, channels // groups, height, width).transpose(1, 2).reshape(batch, channels, height, width)
    )


class UnitV1(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1. Stride 2 concatenates the pooled input, stride 1 adds it."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        branch = width - width_in if stride == 2 else width
        middle = branch // 4
        self.stride = stride
        # The stem's 24 channels are too few to be grouped.
        self.conv1 = nn.Conv2d(width_in, middle, 1, groups=1 if width_in == STEM else V1_GROUPS, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, 1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(middle, branch, 1, groups=V1_GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(branch)
        self.shortcut = nn.AvgPool2d(3, 2, 1) if stride == 2 else nn.Identity()
        if stride == 1:
            self.sum = ResidualAdd()
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C, H / stride, W / stride)."""
        y = self.relu1(self.bn1(self.conv1(x)))
        if self.conv1.groups > 1:
            y = shuffle(y, self.conv1.groups)
        y = self.relu2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        shortcut = self.shortcut(x)
        out: Tensor = self.relu3(torch.cat([y, shortcut], 1) if self.stride == 2 else self.sum(y, shortcut))
        return out


class ShuffleNetV1(nn.Module):
    """Stem, three stages of UnitV1 (the first of each halves the resolution), pooling, Linear."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.relu = nn.ReLU()
        stages, width_in = [], STEM
        for width, units in zip(V1_CHANNELS, V1_UNITS, strict=True):
            stages.append(
                nn.Sequential(UnitV1(width_in, width, 2), *(UnitV1(width, width, 1) for _ in range(units - 1)))
            )
            width_in = width
        self.layer1, self.layer2, self.layer3 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(V1_CHANNELS[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, K)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


class DownUnitV2(nn.Module):
    """Two branches over the whole input, both with stride 2, side by side, shuffled."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        half = width // 2
        # left: depthwise, 1x1
        self.conv1 = nn.Conv2d(width_in, width_in, 3, 2, 1, groups=width_in, bias=False)
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv2 = nn.Conv2d(width_in, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.relu2 = nn.ReLU()
        # right: 1x1, depthwise, 1x1
        self.conv3 = nn.Conv2d(width_in, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu3 = nn.ReLU()
        self.conv4 = nn.Conv2d(half, half, 3, 2, 1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)
        self.relu5 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C, H / 2, W / 2)."""
        left = self.relu2(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = self.relu3(self.bn3(self.conv3(x)))
        right = self.relu5(self.bn5(self.conv5(self.bn4(self.conv4(right)))))
        return shuffle(torch.cat([left, right], 1), 2)


class BasicUnitV2(nn.Module):
    """One half of the channels passes untouched, the other through 1x1, depthwise 3x3, 1x1; shuffled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(half, half, 3, 1, 1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        kept, y = x.chunk(2, dim=1)
        y = self.relu1(self.bn1(self.conv1(y)))
        y = self.bn2(self.conv2(y))
        y = self.relu3(self.bn3(self.conv3(y)))
        return shuffle(torch.cat([kept, y], 1), 2)


class ShuffleNetV2(nn.Module):
    """Stem, three stages (a down unit, then basic units), a 1x1 convolution, pooling, Linear."""

    def __init__(self, width: float, classes: int) -> None:
        super().__init__()
        *channels, last = V2_CHANNELS[width]
        self.conv1 = nn.Conv2d(3, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.relu1 = nn.ReLU()
        stages, width_in = [], STEM
        for out, units in zip(channels, V2_UNITS, strict=True):
            stages.append(nn.Sequential(DownUnitV2(width_in, out), *(BasicUnitV2(out) for _ in range(units - 1))))
            width_in = out
        self.layer1, self.layer2, self.layer3 = stages
        self.conv2 = nn.Conv2d(width_in, last, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(last)
        self.relu2 = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, K)."""
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits
