"""Builders of the project's own networks, by their name in the catalogue."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from compress.models import efficientnet_lite
from compress.models.mobilenet import MobileNetV1, MobileNetV2
from compress.models.resnet import resnet
from compress.models.resnet_x4 import ResNet4
from compress.models.shufflenet import ShuffleNetV1, ShuffleNetV2
from compress.models.vgg import VGG
from compress.models.wide_resnet import WideResNet

# Called with classes=, and with width= if the catalogue lists widths.
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
    "resnet18": partial(ResNet4, depth=18),
    "resnet34": partial(ResNet4, depth=34),
    "resnet50": partial(ResNet4, depth=50),
    "wrn_16_1": partial(WideResNet, depth=16, times=1),
    "wrn_16_2": partial(WideResNet, depth=16, times=2),
    "wrn_40_1": partial(WideResNet, depth=40, times=1),
    "wrn_40_2": partial(WideResNet, depth=40, times=2),
    "vgg8": partial(VGG, depth=8),
    "vgg11": partial(VGG, depth=11),
    "vgg13": partial(VGG, depth=13),
    "vgg16": partial(VGG, depth=16),
    "vgg19": partial(VGG, depth=19),
    "mobilenet_v1": MobileNetV1,
    "mobilenet_v2": MobileNetV2,
    "shufflenet_v1": ShuffleNetV1,
    "shufflenet_v2": ShuffleNetV2,
    **efficientnet_lite.BUILDERS,
}
