"""The maps of a network that distillation methods read, by role. Torch-free: paths are text that `taps.Tapped` reads.

To let feature methods read a network, give it `NetworkInfo.roles`; a test compares every table with the built network.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

# Blocks in each of four stages.
RESNET_BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
# Convolutions in each of five blocks.
VGG_CONVOLUTIONS = {
    "vgg8": (1, 1, 1, 1, 1),
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}


@dataclass(frozen=True)
class Roles:
    """Taps of a network's maps (N, C, H, W), stages from shallow to deep, without the stem.

    Attributes:
        stages_post: Each stage's output after its last activation. For networks whose blocks begin with the activation
            (WRN), after the BatchNorm and ReLU of what follows, never the raw sum. MobileNetV2's stages end without an
            activation, so theirs is the linear output.
        stages_pre: The same maps before that activation, after BatchNorm and residual sum, with the same shapes.
        bn_before_relu: Paths of the BatchNorm that gives each channel of stages_pre its statistics; empty if there is
            none, because the channels come from two sources.
        pre_pool: The map whose spatial mean is the pooled vector, the classifier's input.
        last_stage: The map that SimKD's projector reads; not pre_pool if a convolution follows the last stage.
        after_last_stage: Modules between last_stage and the pooling, in forward order; SimKD's student drops them.
        pool: The pooling module; None if pooling is a function. SimKD's student needs it or an after_last_stage.
    """

    stages_post: tuple[str, ...]
    stages_pre: tuple[str, ...]
    bn_before_relu: tuple[str, ...]
    pre_pool: str
    last_stage: str
    after_last_stage: tuple[str, ...] = ()
    pool: str | None = "avgpool"


def basic_resnet(blocks: tuple[int, ...]) -> Roles:
    """Return the roles of a ResNet with `blocks` BasicBlocks in each stage.

    The ReLU follows the sum, whose statistics the last block's second BatchNorm approximates.
    """
    last = [f"layer{stage}.{count - 1}" for stage, count in enumerate(blocks, 1)]
    return Roles(
        stages_post=tuple(f"layer{stage}:out" for stage in range(1, len(blocks) + 1)),
        stages_pre=tuple(f"{block}.relu2:in" for block in last),
        bn_before_relu=tuple(f"{block}.bn2" for block in last),
        pre_pool="avgpool:in",
        last_stage="avgpool:in",
    )


def bottleneck_resnet(blocks: tuple[int, ...]) -> Roles:
    """Return the roles of a ResNet of Bottlenecks: as `basic_resnet`, with a third convolution."""
    last = [f"layer{stage}.{count - 1}" for stage, count in enumerate(blocks, 1)]
    return replace(
        basic_resnet(blocks),
        stages_pre=tuple(f"{block}.relu3:in" for block in last),
        bn_before_relu=tuple(f"{block}.bn3" for block in last),
    )


def torchvision_resnet(blocks: tuple[int, ...], convolutions: int) -> Roles:
    """Return the roles of torchvision's ResNets: one ReLU serves a whole block, and its last call follows the sum."""
    last = [f"layer{stage}.{count - 1}" for stage, count in enumerate(blocks, 1)]
    pre = tuple(f"{block}.relu:in#{convolutions}" for block in last)
    return replace(
        basic_resnet(blocks), stages_pre=pre, bn_before_relu=tuple(f"{block}.bn{convolutions}" for block in last)
    )


# A stage is activated by what follows it: the next stage's first block, or the network's own BatchNorm.
WIDE_RESNET = Roles(
    stages_post=("block2.0.relu1:out", "block3.0.relu1:out", "relu:out"),
    stages_pre=("block2.0.bn1:out", "block3.0.bn1:out", "bn1:out"),
    bn_before_relu=("block2.0.bn1", "block3.0.bn1", "bn1"),
    pre_pool="avgpool:in",
    last_stage="avgpool:in",
)


def vgg(convolutions: tuple[int, ...]) -> Roles:
    """Return the roles of a VGG with `convolutions` in each block, the first being the stem; maps before pooling."""
    return Roles(
        stages_post=tuple(f"relu{block}:out" for block in (1, 2, 3, 4)),
        stages_pre=tuple(f"relu{block}:in" for block in (1, 2, 3, 4)),
        bn_before_relu=tuple(f"block{block}.{3 * count - 2}" for block, count in enumerate(convolutions) if block),
        pre_pool="avgpool:in",
        last_stage="avgpool:in",
    )


# The last unit of each resolution; block 0 is the stem.
MOBILENET_V1 = Roles(
    stages_post=tuple(f"blocks.{unit}:out" for unit in (3, 5, 11, 13)),
    stages_pre=tuple(f"blocks.{unit}.5:in" for unit in (3, 5, 11, 13)),
    bn_before_relu=tuple(f"blocks.{unit}.4" for unit in (3, 5, 11, 13)),
    pre_pool="avgpool:in",
    last_stage="avgpool:in",
)

# Blocks 1, 2, 4 and 6 are the benchmarks' stages. No activation follows them, so both maps are the linear output.
MOBILENET_V2 = Roles(
    stages_post=tuple(f"blocks.{group}:out" for group in (1, 2, 4, 6)),
    stages_pre=tuple(f"blocks.{group}:out" for group in (1, 2, 4, 6)),
    bn_before_relu=tuple(f"blocks.{group}.{unit}.conv.7" for group, unit in ((1, 1), (2, 2), (4, 2), (6, 0))),
    pre_pool="avgpool:in",
    last_stage="blocks.6:out",
    after_last_stage=("conv2",),
)

SHUFFLENET_V1 = Roles(
    stages_post=("layer1:out", "layer2:out", "layer3:out"),
    stages_pre=("layer1.3.relu3:in", "layer2.7.relu3:in", "layer3.3.relu3:in"),
    bn_before_relu=("layer1.3.bn3", "layer2.7.bn3", "layer3.3.bn3"),
    pre_pool="avgpool:in",
    last_stage="avgpool:in",
)

# Half of a stage's channels pass its last unit untouched (after an earlier activation); the other half are read before
# their ReLU. Both are joined here, unshuffled as in the benchmarks, so their order differs from that of stages_post.
SHUFFLENET_V2 = Roles(
    stages_post=("layer1:out", "layer2:out", "layer3:out"),
    stages_pre=tuple(f"{unit}:in[1/2] + {unit}.relu3:in" for unit in ("layer1.3", "layer2.7", "layer3.3")),
    bn_before_relu=(),
    pre_pool="avgpool:in",
    last_stage="layer3:out",
    after_last_stage=("conv2", "bn2", "relu2"),
)


def efficientnet_lite(last: tuple[int, int, int, int]) -> Roles:
    """Return the roles of an EfficientNet-Lite; `last` are the last blocks of its stages, without an activation."""
    taps = tuple(f"blocks.{block}:out" for block in last)
    return Roles(
        stages_post=taps,
        stages_pre=taps,
        bn_before_relu=tuple(f"blocks.{block}.bn2" for block in last),
        pre_pool="avgpool:in",
        last_stage=taps[-1],
        after_last_stage=("conv_head", "bn1", "relu1"),
    )
