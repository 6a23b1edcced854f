"""The builders of the small-picture networks, by the catalogue's name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from compress.models.mobilenet import MobileNetV2
from compress.models.resnet import resnet
from compress.models.shufflenet import ShuffleNetV1, ShuffleNetV2

# called with classes=, and width= where the catalogue gives widths
BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "resnet8": partial(resnet, depth=8),
    "resnet14": partial(resnet, depth=14),
    "resnet20": partial(resnet, depth=20),
    "resnet32": partial(resnet, depth=32),
    "resnet44": partial(resnet, depth=44),
    "resnet56": partial(resnet, depth=56),
    "resnet110": partial(resnet, depth=110),
    "resnet8x4": partial(resnet, depth=8, times=4),
    "resnet32x4": partial(resnet, depth=32, times=4),
    "mobilenet_v2": MobileNetV2,
    "shufflenet_v1": ShuffleNetV1,
    "shufflenet_v2": ShuffleNetV2,
}
