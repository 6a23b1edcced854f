from __future__ import annotations

import torch

from compress.models import build
from compress.models.meta import meta_device, shapes_only
from compress.models.outline import outline


def test_shapes_only_network_has_shapes_and_zero_values():
    model, whole = shapes_only("resnet8", classes=10, width=None), build("resnet8", classes=10)

    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in whole.state_dict().items()
    }
    assert not any(value.any() for value in model.state_dict().values()) and not model.training


def test_probing_shapes_draws_no_random_number():
    torch.manual_seed(3)
    before = torch.get_rng_state()

    for name in ("mobilenet_v2", "efficientnet_lite0"):
        outline(name, classes=10, width=None, image_size=32)
    with meta_device():
        assert build("shufflenet_v2", classes=10).fc.weight.is_meta

    assert torch.equal(torch.get_rng_state(), before)
