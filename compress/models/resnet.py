"""ResNets for small images: a 3x3 stem without pooling and three stages.

Source: He et al. 2016 (CIFAR section), with the projection shortcuts ("option B") of the distillation benchmarks: where
the shape changes, the shortcut is a strided 1x1 convolution + BatchNorm. He's own CIFAR networks pad instead and have
fewer parameters.
"""

from __future__ import annotations

from torch import Tensor, nn

from compress.models.residual_add import ResidualAdd


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; ReLU after the sum. `relu2:in` is the stage map before its activation."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = projection(width_in, width, stride)
        self.sum = ResidualAdd()
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C, H / stride, W / stride)."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: Tensor = self.relu2(self.sum(y, self.downsample(x)))
        return out


class ResNet(nn.Module):
    """Depth 6 n + 2: n BasicBlocks in each of three stages."""

    def __init__(self, blocks: int, stem: int, widths: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU()
        self.layer1 = _stage(stem, widths[0], blocks, stride=1)
        self.layer2 = _stage(widths[0], widths[1], blocks, stride=2)
        self.layer3 = _stage(widths[1], widths[2], blocks, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[2], classes)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, K)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def projection(width_in: int, width: int, stride: int) -> nn.Module:
    """Build a block's shortcut: a strided 1x1 convolution + BatchNorm if the shape changes, else the identity."""
    if stride == 1 and width_in == width:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))


def init_convolutions(model: nn.Module) -> None:
    """Draw convolutions from He's normal distribution by fan out; the rest keeps PyTorch's default."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _stage(width_in: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(width_in, width, stride)
    return nn.Sequential(first, *(BasicBlock(width, width, 1) for _ in range(blocks - 1)))


def resnet(*, depth: int, classes: int, times: int = 1) -> ResNet:
    """Build the CIFAR ResNet of depth 6 n + 2.

    Args:
        depth: 8, 14, 20, ...
        classes: Number of classes.
        times: 4 for the benchmarks' "x4": a stem of 32 and stages four times as wide.
    """
    stem = 16 if times == 1 else 32
    return ResNet((depth - 2) // 6, stem, (16 * times, 32 * times, 64 * times), classes)
