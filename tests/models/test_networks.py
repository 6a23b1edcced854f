from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from compress.core.errors import UsageError
from compress.models import build, catalog
from compress.models.count import macs, params
from compress.models.outline import outline
from compress.models.registry import BUILDERS
from compress.models.shufflenet import shuffle
from compress.models.taps import Tapped

CIFAR = tuple(name for name in catalog.names() if catalog.info(name).family == "cifar")
OWN = (*CIFAR, *(name for name in catalog.names() if catalog.info(name).family == "photos"))
TORCHVISION = tuple(name for name in catalog.names() if catalog.info(name).family == "torchvision")

# Parameters and multiply-accumulates at 100 classes and 32x32, BatchNorm layers, parameters at 10 classes if published.
# Source: measured on the distillation benchmarks' own networks.
COUNTS = {
    "resnet8": (83_892, 12_507_392, 9, None),
    "resnet14": (181_108, 26_663_168, 15, None),
    "resnet20": (278_324, 40_818_944, 21, 272_474),
    "resnet32": (472_756, 69_130_496, 33, 466_906),
    "resnet44": (667_188, 97_442_048, 45, None),
    "resnet56": (861_620, 125_753_600, 57, 855_770),
    "resnet110": (1_736_564, 253_155_584, 111, 1_730_714),
    "resnet8x4": (1_233_540, 177_071_104, 10, None),
    "resnet32x4": (7_433_860, 1_083_040_768, 34, None),
    "resnet18": (11_220_132, 555_468_800, 20, None),
    "resnet34": (21_328_292, 1_159_448_576, 36, None),
    "resnet50": (23_705_252, 1_298_014_208, 53, None),
    "wrn_16_1": (180_916, 26_663_168, 13, None),
    "wrn_16_2": (703_284, 101_118_464, 13, None),
    "wrn_40_1": (569_780, 83_286_272, 37, None),
    "wrn_40_2": (2_255_156, 327_610_880, 37, None),
    "vgg8": (3_965_028, 96_192_512, 5, 3_918_858),
    "vgg11": (9_277_284, 209_438_720, 8, None),
    "vgg13": (9_462_180, 284_936_192, 10, None),
    "vgg16": (14_774_436, 398_182_400, 13, None),
    "vgg19": (20_086_692, 511_428_608, 16, None),
    "mobilenet_v2": (812_836, 6_523_648, 53, 697_546),
    "shufflenet_v1": (949_258, 38_691_456, 49, 862_768),
    "shufflenet_v2": (1_355_528, 44_504_448, 56, 1_263_278),
}

# parameters and multiply-accumulates at 1000 classes and 224x224, from the same source
LARGE_COUNTS = {
    "mobilenet_v1": (4_231_976, 568_740_352),
    "torchvision/resnet18": (11_689_512, 1_814_073_344),
    "torchvision/resnet34": (21_797_672, 3_663_761_408),
    "torchvision/resnet50": (25_557_032, 4_089_184_256),
}

# stem, stages and pooled vector at 32x32: tap and (C, H, W) or (d,)
RESNET_TAPS = ("relu:out", "layer1:out", "layer2:out", "layer3:out", "fc:in")
DEEP_TAPS = (*RESNET_TAPS[:4], "layer4:out", "fc:in")
SHAPES = {
    "resnet50": (DEEP_TAPS, ((64, 32, 32), (256, 32, 32), (512, 16, 16), (1024, 8, 8), (2048, 4, 4), (2048,))),
    "resnet18": (DEEP_TAPS, ((64, 32, 32), (64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512,))),
    "wrn_16_2": (
        ("conv1:out", "block1:out", "block2:out", "block3:out", "fc:in"),
        ((16, 32, 32), (32, 32, 32), (64, 16, 16), (128, 8, 8), (128,)),
    ),
    "vgg8": (
        ("relu0:out", "relu1:out", "relu2:out", "relu3:out", "relu4:out", "classifier:in"),
        ((64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 4, 4), (512,)),
    ),
    "resnet20": (RESNET_TAPS, ((16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8), (64,))),
    "resnet8x4": (RESNET_TAPS, ((32, 32, 32), (64, 32, 32), (128, 16, 16), (256, 8, 8), (256,))),
    "mobilenet_v2": (
        ("conv1:out", "blocks.1:out", "blocks.2:out", "blocks.4:out", "blocks.6:out", "classifier:in"),
        ((16, 16, 16), (12, 16, 16), (16, 8, 8), (48, 4, 4), (160, 2, 2), (1280,)),
    ),
    "shufflenet_v1": (RESNET_TAPS, ((24, 32, 32), (240, 16, 16), (480, 8, 8), (960, 4, 4), (960,))),
    "shufflenet_v2": (
        ("relu1:out", *RESNET_TAPS[1:]),
        ((24, 32, 32), (116, 16, 16), (232, 8, 8), (464, 4, 4), (1024,)),
    ),
}


def on_meta(name: str, classes: int, width: float | None = None) -> nn.Module:
    with torch.device("meta"):
        return build(name, classes=classes, width=width)


def test_every_cifar_network_has_a_builder_and_known_counts():
    assert set(OWN) == set(BUILDERS)
    assert set(CIFAR) == set(COUNTS)


@pytest.mark.parametrize("name", CIFAR)
def test_counts_at_100_and_10_classes(name: str):
    model = on_meta(name, 100)
    expected_params, expected_macs, batch_norms, params_10 = COUNTS[name]
    (pooled,) = outline(name, classes=100, width=None, image_size=32).shapes["pooled"]

    assert params(model) == expected_params
    assert macs(model, 32) == expected_macs
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == batch_norms
    assert params(on_meta(name, 10)) == expected_params - 90 * (pooled + 1)
    assert params_10 in (None, expected_params - 90 * (pooled + 1))


@pytest.mark.parametrize("name", LARGE_COUNTS)
def test_counts_of_the_imagenet_pairs(name: str):
    model = on_meta(name, 1000)

    assert (params(model), macs(model, 224)) == LARGE_COUNTS[name]


def test_widths_change_the_channels_as_the_papers_say():
    half = on_meta("mobilenet_v2", 10)
    wide = on_meta("mobilenet_v2", 10, 1.5)
    shuffle_wide = on_meta("shufflenet_v2", 10, 1.5)
    quarter = on_meta("mobilenet_v1", 10, 0.25)

    assert [quarter.get_submodule(f"blocks.{unit}.3").out_channels for unit in (1, 2, 4, 6, 12, 13)] == [
        16,
        32,
        64,
        128,
        256,
        256,
    ]
    assert outline("mobilenet_v1", classes=10, width=0.25, image_size=32).shapes["pooled"] == (256,)
    assert [half.get_submodule(f"blocks.{group}.0.conv.6").out_channels for group in range(7)] == [
        8,
        12,
        16,
        32,
        48,
        80,
        160,
    ]
    assert half.classifier.in_features == 1280
    assert wide.classifier.in_features == 1920
    assert [shuffle_wide.get_submodule(f"layer{stage}.1.bn3").num_features * 2 for stage in (1, 2, 3)] == [
        176,
        352,
        704,
    ]


@pytest.mark.parametrize("name", SHAPES)
def test_tap_shapes_at_32(name: str):
    taps, shapes = SHAPES[name]
    model = build(name, classes=7).eval()

    with torch.inference_mode(), Tapped(model, {tap: tap for tap in taps}) as tapped:
        logits, features = tapped(torch.zeros(2, 3, 32, 32))

    assert logits.shape == (2, 7)
    assert [tuple(features[tap].shape[1:]) for tap in taps] == list(shapes)


REPRESENTATIVES = (
    "resnet8",
    "resnet18",
    "wrn_16_1",
    "vgg8",
    "mobilenet_v1",
    "mobilenet_v2",
    "shufflenet_v1",
    "shufflenet_v2",
)


@pytest.mark.parametrize("name", REPRESENTATIVES)
@pytest.mark.parametrize("size", ["smallest", 35, 45])
def test_other_image_sizes_give_one_row_per_image(name: str, size: int | str):
    side = catalog.info(name).min_size if size == "smallest" else int(size)
    model = build(name, classes=5).train()

    logits = model(torch.randn(3, 3, side, side))
    logits.sum().backward()

    assert logits.shape == (3, 5)
    assert torch.isfinite(logits).all()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_adaptive_pooling_is_the_papers_average_pool_at_32(name: str):
    model = build(name, classes=5).eval()
    head = catalog.info(name).classifier

    with torch.no_grad(), Tapped(model, {"map": "avgpool:in", "pooled": f"{head}:in"}) as tapped:
        _, features = tapped(torch.randn(2, 3, 32, 32))

    fixed = nn.functional.avg_pool2d(features["map"], features["map"].shape[-1]).flatten(1)
    torch.testing.assert_close(features["pooled"], fixed)


@pytest.mark.parametrize("name", OWN)
def test_no_activation_works_in_place(name: str):
    assert not any(getattr(module, "inplace", False) for module in on_meta(name, 10).modules())


def test_pre_activation_taps_keep_their_negative_values():
    with (
        torch.no_grad(),
        Tapped(build("resnet8", classes=5), {"pre": "layer3.0.relu2:in", "post": "layer3:out"}) as tapped,
    ):
        _, features = tapped(torch.randn(2, 3, 16, 16))

    assert features["pre"].min() < 0
    assert torch.equal(features["pre"].relu(), features["post"])


def test_wide_resnet_stages_are_raw_sums_read_by_the_next_norm():
    taps = {"raw": "block2:out", "normed": "block3.0.bn1:out", "activated": "block3.0.relu1:out"}
    model = build("wrn_16_1", classes=5).eval()
    with torch.no_grad(), Tapped(model, taps) as tapped:
        _, features = tapped(torch.randn(2, 3, 16, 16))

    assert features["raw"].min() < 0 and features["normed"].min() < 0
    torch.testing.assert_close(model.block3[0].bn1(features["raw"]), features["normed"])
    assert torch.equal(features["normed"].relu(), features["activated"])


@pytest.mark.parametrize(("size", "side"), [(32, 4), (63, 7), (64, 4), (96, 6)])
def test_vgg_pools_once_more_for_large_images(size: int, side: int):
    with torch.no_grad(), Tapped(build("vgg8", classes=5), {"last": "relu4:out"}) as tapped:
        _, features = tapped(torch.randn(2, 3, size, size))

    assert features["last"].shape == (2, 512, side, side)


def test_shuffle_interleaves_the_groups():
    x = torch.arange(6.0).view(1, 6, 1, 1).expand(2, 6, 3, 4)

    assert shuffle(x, 2)[1, :, 2, 3].tolist() == [0, 3, 1, 4, 2, 5]
    assert shuffle(x, 3)[0, :, 0, 0].tolist() == [0, 2, 4, 1, 3, 5]


def test_initialisation_is_the_papers():
    torch.manual_seed(0)
    resnet, mobile = build("resnet8", classes=100), build("mobilenet_v2", classes=100)
    conv, depthwise, head = resnet.layer3[0].conv2.weight, mobile.blocks[6][0].conv[3].weight, mobile.classifier

    assert conv.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)  # fan out
    # All output channels, not the group's.
    assert depthwise.std().item() == pytest.approx((2 / (9 * 480)) ** 0.5, rel=0.05)
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert head.bias.abs().max().item() == 0


def test_fewer_than_two_classes_are_refused():
    with pytest.raises(UsageError, match="resnet20: a classifier needs at least 2 classes, not 1"):
        build("resnet20", classes=1)


def check_torchvision(name: str) -> None:
    network = catalog.info(name)
    model = build(name, classes=7).eval()
    shape = outline(name, classes=7, width=None, image_size=network.min_size)

    with torch.inference_mode(), Tapped(model, {"pooled": shape.taps["pooled"]}) as tapped:
        logits, features = tapped(torch.randn(2, 3, network.min_size, network.min_size))

    assert logits.shape == (2, 7)
    assert features["pooled"].shape == (2, *shape.shapes["pooled"])
    assert len(model.get_submodule(network.linear).weight) == shape.classes == 7
    assert not any(getattr(module, "inplace", False) for module in model.modules())


@pytest.mark.parametrize(
    "name", ["torchvision/mobilenet_v3_small", "torchvision/shufflenet_v2_x0_5", "torchvision/squeezenet1_1"]
)
def test_torchvision_network(name: str):
    check_torchvision(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_every_torchvision_network(name: str):
    check_torchvision(name)


@pytest.mark.parametrize("name", catalog.names())
def test_counts_in_the_summaries_are_correct(name: str):
    network = catalog.info(name)
    model = on_meta(name, 100 if network.family == "cifar" else 1000)  # as the catalogue says

    stated = re.search(r"([\d.]+) M parameters, ([\d.]+) M MACs", network.summary)

    assert stated is not None
    assert stated[1] == f"{params(model) / 1e6:.2f}"
    assert stated[2] == f"{macs(model, network.default_size) / 1e6:.1f}"


def test_offered_weights_are_torchvisions():
    from torchvision.models import get_model_weights

    for name in TORCHVISION:
        assert catalog.info(name).pretrained == tuple(
            entry.name for entry in get_model_weights(name.removeprefix("torchvision/"))
        )


def test_shuffle_in_training_keeps_channels_last_and_order():
    x = torch.randn(2, 12, 3, 5)
    trained = x.to(memory_format=torch.channels_last).requires_grad_()
    for groups in (2, 3):
        y = shuffle(trained, groups)
        assert torch.equal(y, shuffle(x, groups)) and y.is_contiguous(memory_format=torch.channels_last)
        weights = torch.randn_like(x)
        one, other = x.clone().requires_grad_(), trained
        expected = torch.autograd.grad((shuffle(one, groups) * weights).sum(), one)[0]
        assert torch.equal(torch.autograd.grad((y * weights).sum(), other)[0], expected)
