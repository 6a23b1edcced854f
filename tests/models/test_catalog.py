from __future__ import annotations

import subprocess
import sys

import pytest

from compress.core.errors import UsageError
from compress.models import catalog


def test_catalogue_imports_without_torch():
    code = (
        "import sys, compress.models.catalog\n"
        "print([name for name in ('torch', 'torchvision', 'numpy') if name in sys.modules])"
    )

    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert answer.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("mobilenetv2", "mobilenet_v2"),
        ("ResNet56", "resnet56"),
        ("mobilenet_v3_small", "torchvision/mobilenet_v3_small"),
        ("torchvision/mobilenet_v3_smal", "torchvision/mobilenet_v3_small"),
    ],
)
def test_unknown_name_suggests_a_close_one(wrong: str, right: str):
    with pytest.raises(UsageError) as error:
        catalog.info(wrong)

    assert (
        str(error.value)
        == f"model: there is no network {wrong!r} (did you mean {right!r}?); `compress models` lists all"
    )


def test_name_without_a_close_one_has_no_suggestion():
    with pytest.raises(UsageError) as error:
        catalog.info("qqqq")

    assert str(error.value) == "model: there is no network 'qqqq'; `compress models` lists all"


def test_width_defaults_and_limits():
    mobile, shuffle, resnet = (catalog.info(name) for name in ("mobilenet_v2", "shufflenet_v2", "resnet20"))

    assert [catalog.resolve_width(network, None) for network in (mobile, shuffle, resnet)] == [0.5, 1.0, None]
    assert catalog.resolve_width(mobile, 0.35) == 0.35
    assert catalog.resolve_width(shuffle, 1.5) == 1.5


@pytest.mark.parametrize(
    ("name", "width", "message"),
    [
        ("mobilenet_v2", 3.0, "width: mobilenet_v2 takes 0.1 to 2, not 3"),
        ("shufflenet_v2", 0.75, "width: shufflenet_v2 comes in the widths 0.5, 1, 1.5, 2, not 0.75"),
        ("resnet20", 0.5, "width: resnet20 has no width option; leave `width` out"),
    ],
)
def test_wrong_width(name: str, width: float, message: str):
    with pytest.raises(UsageError) as error:
        catalog.resolve_width(catalog.info(name), width)

    assert str(error.value) == message


def test_small_images_are_refused_by_size():
    catalog.check_image_size(catalog.info("mobilenet_v2"), 16)

    with pytest.raises(UsageError, match="mobilenet_v2 needs images of at least 16 pixels, not 15"):
        catalog.check_image_size(catalog.info("mobilenet_v2"), 15)


def test_the_papers_mobile_students_are_marked():
    cifar = [network for network in catalog.NETWORKS.values() if network.family == "cifar"]

    assert {network.name for network in cifar if network.mobile} == {"mobilenet_v2", "shufflenet_v1", "shufflenet_v2"}
