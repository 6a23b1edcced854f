"""ResNet-18, 34 and 50 for small images: the ImageNet networks' four stages after a 3x3 stem without pooling.

Source: He et al. 2016 (ImageNet section), with the distillation benchmarks' stem and a bottleneck's stride on its 3x3
convolution. At 224 pixels they cost 15 times torchvision's networks of the same name.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from compress.models.residual_add import ResidualAdd
from compress.models.resnet import BasicBlock, init_convolutions, projection
from compress.models.tap_tables import RESNET_BLOCKS

WIDTHS = (64, 128, 256, 512)
EXPANSION = 4  # of a bottleneck's last convolution


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 to the full width, and a shortcut; ReLU after the sum."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        middle = width // EXPANSION
        self.conv1 = nn.Conv2d(width_in, middle, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(middle, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.downsample = projection(width_in, width, stride)
        self.sum = ResidualAdd()
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C, H / stride, W / stride)."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        out: Tensor = self.relu3(self.sum(self.bn3(self.conv3(y)), self.downsample(x)))
        return out


class ResNet4(nn.Module):
    """Four stages of BasicBlocks (18, 34) or Bottlenecks (50)."""

    def __init__(self, depth: int, classes: int) -> None:
        super().__init__()
        block: Callable[[int, int, int], nn.Module] = Bottleneck if depth >= 50 else BasicBlock
        widths = tuple(width * (EXPANSION if depth >= 50 else 1) for width in WIDTHS)
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.relu = nn.ReLU()
        plan = zip((WIDTHS[0], *widths), widths, RESNET_BLOCKS[f"resnet{depth}"], (1, 2, 2, 2), strict=False)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(block(width_in, width, stride), *(block(width, width, 1) for _ in range(count - 1)))
            for width_in, width, count, stride in plan
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], classes)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, K)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits
