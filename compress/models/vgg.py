"""VGG for small images: five blocks of 3x3 convolutions with bias and BatchNorm, global pooling and one Linear.

Source: Simonyan, Zisserman 2015 (A, B, D, E), as in the distillation benchmarks: no fully connected layers of 4096, no
dropout, a shorter vgg8, the last ReLU of a block outside of it (`block1:out` is stage 1 before its activation,
`relu1:out` after it), and pooling after block 3 only for images of 64 pixels or more (theirs: of exactly 64).
"""

from __future__ import annotations

from torch import Tensor, nn

from compress.models.tap_tables import VGG_CONVOLUTIONS
from compress.models.weight_init import initialise

WIDTHS = (64, 128, 256, 512, 512)
LARGE_IMAGE_SIZE = 64  # pixels


class VGG(nn.Module):
    """Five blocks; pooling halves the map after blocks 0, 1, 2, and after 3 if the image is large."""

    def __init__(self, depth: int, classes: int) -> None:
        super().__init__()
        layers = zip((3, *WIDTHS), WIDTHS, VGG_CONVOLUTIONS[f"vgg{depth}"], strict=False)
        self.block0, self.block1, self.block2, self.block3, self.block4 = (
            _block(width_in, width, count) for width_in, width, count in layers
        )
        self.relu0, self.relu1, self.relu2, self.relu3, self.relu4 = (nn.ReLU() for _ in WIDTHS)
        self.pool = nn.MaxPool2d(2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(WIDTHS[-1], classes)
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, K)."""
        large = x.shape[2] >= LARGE_IMAGE_SIZE
        x = self.pool(self.relu0(self.block0(x)))
        x = self.pool(self.relu1(self.block1(x)))
        x = self.pool(self.relu2(self.block2(x)))
        x = self.relu3(self.block3(x))
        x = self.relu4(self.block4(self.pool(x) if large else x))
        logits: Tensor = self.classifier(self.avgpool(x).flatten(1))
        return logits


def _block(width_in: int, width: int, convolutions: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number in range(convolutions):
        layers += [nn.ReLU()] if number else []
        layers += [nn.Conv2d(width if number else width_in, width, 3, 1, 1), nn.BatchNorm2d(width)]
    return nn.Sequential(*layers)
