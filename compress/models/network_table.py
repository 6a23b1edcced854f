"""The table of networks: names, sizes, options. Torch-free, so that a wrong name in a recipe is reported at once.

To add a network, add one `NetworkInfo` here and one builder in `registry.py` (torchvision's need no builder). Counts in
the summaries are parameters at 100 classes (1000 for the networks for photos) and multiply-accumulates of convolutions
and linear layers for one image of the default size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from compress.models import tap_tables
from compress.models.tap_tables import Roles

Constants = tuple[tuple[float, float, float], tuple[float, float, float]]

IMAGENET_NORMALIZATION: Constants = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# (x - 127) / 128 of pixels x in [0, 255]
LITE_NORMALIZATION: Constants = ((127 / 255,) * 3, (128 / 255,) * 3)


@dataclass(frozen=True)
class NetworkInfo:
    """A network that `models.build` can make.

    Attributes:
        name: Name in recipes.
        family: "cifar" for small images, "photos" for large ones, "torchvision", "timm", or "own" for the user's.
        summary: One line for `compress models`.
        min_size: Smallest image side in pixels, at least the total stride, so that the last map has a whole cell.
        default_size: Usual image side in pixels.
        classifier: Path of the block whose input is the pooled vector.
        linear: Path of the Linear that gives the logits; of SqueezeNet, its 1x1 convolution.
        pooled: Tap of the pooled vector, if it is not the classifier's input.
        widths: Lowest and highest width multiplier; None if the network has no such option.
        width_choices: The allowed widths; empty if every width in the range is allowed.
        default_width: Width if the recipe names none.
        pretrained: torchvision's names of its weights.
        mobile: Whether the papers train this student at learning rate 0.01.
        roles: The maps that feature methods read; None if only logits and pooled vector can be read.
        normalization: Mean and deviation, of pixels in [0, 1], that its published weights were trained with.
    """

    name: str
    family: Literal["cifar", "photos", "torchvision", "timm", "own"]
    summary: str
    min_size: int
    default_size: int
    classifier: str
    linear: str
    pooled: str = ""
    widths: tuple[float, float] | None = None
    width_choices: tuple[float, ...] = ()
    default_width: float | None = None
    pretrained: tuple[str, ...] = ()
    mobile: bool = False
    roles: Roles | None = None
    normalization: Constants | None = None


def _cifar_resnet(name: str, counts: str) -> NetworkInfo:
    blocks = (int(name.removeprefix("resnet").removesuffix("x4")) - 2) // 6
    summary = f"CIFAR ResNet, three stages, 1x1 shortcuts: {counts}"
    return NetworkInfo(name, "cifar", summary, 8, 32, "fc", "fc", roles=tap_tables.basic_resnet((blocks,) * 3))


def _deep_resnet(name: str, counts: str) -> NetworkInfo:
    maps = (
        tap_tables.basic_resnet(tap_tables.RESNET_BLOCKS[name])
        if name != "resnet50"
        else tap_tables.bottleneck_resnet(tap_tables.RESNET_BLOCKS[name])
    )
    summary = f"ResNet of four stages for small images (3x3 stem, no pooling): {counts}"
    return NetworkInfo(name, "cifar", summary, 8, 32, "fc", "fc", roles=maps)


def _wide_resnet(name: str, counts: str) -> NetworkInfo:
    return NetworkInfo(
        name,
        "cifar",
        f"wide ResNet, pre-activation, three stages: {counts}",
        8,
        32,
        "fc",
        "fc",
        roles=tap_tables.WIDE_RESNET,
    )


def _vgg(name: str, counts: str) -> NetworkInfo:
    summary, maps = (
        f"VGG with BatchNorm and one Linear, for small images: {counts}",
        tap_tables.vgg(tap_tables.VGG_CONVOLUTIONS[name]),
    )
    return NetworkInfo(name, "cifar", summary, 8, 32, "classifier", "classifier", roles=maps)


_V1, _V1_V2 = ("IMAGENET1K_V1",), ("IMAGENET1K_V1", "IMAGENET1K_V2")


def _torchvision_resnet(name: str, counts: str, pretrained: tuple[str, ...]) -> NetworkInfo:
    maps = tap_tables.torchvision_resnet(tap_tables.RESNET_BLOCKS[name], 3 if name == "resnet50" else 2)
    summary = f"ImageNet ResNet: {counts}"
    return NetworkInfo(
        f"torchvision/{name}",
        "torchvision",
        summary,
        32,
        224,
        "fc",
        "fc",
        pretrained=pretrained,
        roles=maps,
        normalization=IMAGENET_NORMALIZATION,
    )


def _torchvision_mobile(
    name: str, summary: str, classifier: str, linear: str, pretrained: tuple[str, ...]
) -> NetworkInfo:
    return NetworkInfo(
        f"torchvision/{name}",
        "torchvision",
        summary,
        32,
        224,
        classifier,
        linear,
        pretrained=pretrained,
        mobile=True,
        normalization=IMAGENET_NORMALIZATION,
    )


def _lite(variant: int, size: int, counts: str, stages: tuple[int, int, int, int]) -> NetworkInfo:
    """Describe an EfficientNet-Lite; `stages` are the last block before each halving of the map, and the last block."""
    return NetworkInfo(
        f"efficientnet_lite{variant}",
        "photos",
        f"EfficientNet-Lite{variant} at {size} pixels, ReLU6: {counts}",
        32,
        size,
        "classifier",
        "classifier.1",
        mobile=True,
        normalization=LITE_NORMALIZATION,
        roles=tap_tables.efficientnet_lite(stages),
    )


def _squeezenet(name: str, counts: str) -> NetworkInfo:
    """Describe a SqueezeNet: its classifier convolves before pooling, so the pooled vector is the mean of its input."""
    return NetworkInfo(
        f"torchvision/{name}",
        "torchvision",
        f"SqueezeNet without BatchNorm: {counts}",
        32,
        224,
        "classifier",
        "classifier.1",
        pooled="features:out[mean]",
        pretrained=_V1,
        mobile=True,
        normalization=IMAGENET_NORMALIZATION,
    )


_ALL = (
    _cifar_resnet("resnet8", "0.08 M parameters, 12.5 M MACs"),
    _cifar_resnet("resnet14", "0.18 M parameters, 26.7 M MACs"),
    _cifar_resnet("resnet20", "0.28 M parameters, 40.8 M MACs"),
    _cifar_resnet("resnet32", "0.47 M parameters, 69.1 M MACs"),
    _cifar_resnet("resnet44", "0.67 M parameters, 97.4 M MACs"),
    _cifar_resnet("resnet56", "0.86 M parameters, 125.8 M MACs"),
    _cifar_resnet("resnet110", "1.74 M parameters, 253.2 M MACs"),
    _cifar_resnet("resnet8x4", "1.23 M parameters, 177.1 M MACs"),
    _cifar_resnet("resnet32x4", "7.43 M parameters, 1083.0 M MACs"),
    _deep_resnet("resnet18", "11.22 M parameters, 555.5 M MACs"),
    _deep_resnet("resnet34", "21.33 M parameters, 1159.4 M MACs"),
    _deep_resnet("resnet50", "23.71 M parameters, 1298.0 M MACs"),
    _wide_resnet("wrn_16_1", "0.18 M parameters, 26.7 M MACs"),
    _wide_resnet("wrn_16_2", "0.70 M parameters, 101.1 M MACs"),
    _wide_resnet("wrn_40_1", "0.57 M parameters, 83.3 M MACs"),
    _wide_resnet("wrn_40_2", "2.26 M parameters, 327.6 M MACs"),
    _vgg("vgg8", "3.97 M parameters, 96.2 M MACs"),
    _vgg("vgg11", "9.28 M parameters, 209.4 M MACs"),
    _vgg("vgg13", "9.46 M parameters, 284.9 M MACs"),
    _vgg("vgg16", "14.77 M parameters, 398.2 M MACs"),
    _vgg("vgg19", "20.09 M parameters, 511.4 M MACs"),
    NetworkInfo(
        "mobilenet_v1",
        "photos",
        "MobileNetV1: 4.23 M parameters, 568.7 M MACs",
        min_size=32,
        default_size=224,
        classifier="fc",
        linear="fc",
        widths=(0.25, 2.0),
        default_width=1.0,
        mobile=True,
        roles=tap_tables.MOBILENET_V1,
    ),
    NetworkInfo(
        "mobilenet_v2",
        "cifar",
        "MobileNetV2 for small images (the papers' mobile_half at width 0.5): 0.81 M parameters, 6.5 M MACs",
        min_size=16,
        default_size=32,
        classifier="classifier",
        linear="classifier",
        widths=(0.1, 2.0),
        default_width=0.5,
        mobile=True,
        roles=tap_tables.MOBILENET_V2,
    ),
    NetworkInfo(
        "shufflenet_v1",
        "cifar",
        "ShuffleNetV1 for small images, 3 groups: 0.95 M parameters, 38.7 M MACs",
        min_size=8,
        default_size=32,
        classifier="fc",
        linear="fc",
        mobile=True,
        roles=tap_tables.SHUFFLENET_V1,
    ),
    NetworkInfo(
        "shufflenet_v2",
        "cifar",
        "ShuffleNetV2 for small images: 1.36 M parameters, 44.5 M MACs",
        min_size=8,
        default_size=32,
        classifier="fc",
        linear="fc",
        widths=(0.5, 2.0),
        width_choices=(0.5, 1.0, 1.5, 2.0),
        default_width=1.0,
        mobile=True,
        roles=tap_tables.SHUFFLENET_V2,
    ),
    _lite(0, 224, "4.65 M parameters, 385.2 M MACs", (2, 4, 10, 15)),
    _lite(1, 240, "5.42 M parameters, 600.2 M MACs", (3, 6, 14, 20)),
    _lite(2, 260, "6.09 M parameters, 859.7 M MACs", (3, 6, 14, 20)),
    _lite(3, 280, "8.20 M parameters, 1383.3 M MACs", (3, 6, 16, 23)),
    _lite(4, 300, "13.01 M parameters, 2553.0 M MACs", (4, 8, 20, 29)),
    _torchvision_mobile(
        "mobilenet_v2", "MobileNetV2: 3.50 M parameters, 300.8 M MACs", "classifier", "classifier.1", _V1_V2
    ),
    _torchvision_mobile(
        "mobilenet_v3_small", "MobileNetV3 small: 2.54 M parameters, 56.5 M MACs", "classifier", "classifier.3", _V1
    ),
    _torchvision_mobile(
        "mobilenet_v3_large", "MobileNetV3 large: 5.48 M parameters, 216.6 M MACs", "classifier", "classifier.3", _V1_V2
    ),
    _torchvision_mobile("shufflenet_v2_x0_5", "ShuffleNetV2 0.5x: 1.37 M parameters, 40.5 M MACs", "fc", "fc", _V1),
    _torchvision_mobile("shufflenet_v2_x1_0", "ShuffleNetV2 1.0x: 2.28 M parameters, 144.9 M MACs", "fc", "fc", _V1),
    _torchvision_mobile("shufflenet_v2_x1_5", "ShuffleNetV2 1.5x: 3.50 M parameters, 295.8 M MACs", "fc", "fc", _V1),
    _torchvision_mobile("shufflenet_v2_x2_0", "ShuffleNetV2 2.0x: 7.39 M parameters, 583.3 M MACs", "fc", "fc", _V1),
    _torchvision_mobile(
        "efficientnet_b0", "EfficientNet-B0: 5.29 M parameters, 385.8 M MACs", "classifier", "classifier.1", _V1
    ),
    _squeezenet("squeezenet1_0", "1.25 M parameters, 818.9 M MACs"),
    _squeezenet("squeezenet1_1", "1.24 M parameters, 349.2 M MACs"),
    _torchvision_resnet("resnet18", "11.69 M parameters, 1814.1 M MACs", _V1),
    _torchvision_resnet("resnet34", "21.80 M parameters, 3663.8 M MACs", _V1),
    _torchvision_resnet("resnet50", "25.56 M parameters, 4089.2 M MACs", _V1_V2),
)

NETWORKS: dict[str, NetworkInfo] = {network.name: network for network in _ALL}
