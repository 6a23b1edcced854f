"""The tables of roles compared with the built networks: every tap exists and is the stated map."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compress.models import build, catalog
from compress.models.shufflenet import shuffle
from compress.models.taps import Tapped

WITH_ROLES = tuple(name for name in catalog.names() if catalog.info(name).roles is not None)
# No activation after the stages.
LINEAR_STAGES = (
    "mobilenet_v2",
    *(f"efficientnet_lite{variant}" for variant in range(5)),
)


def read(name: str, *, train: bool = True) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return all maps of a fresh network on noise, with batch statistics so that the maps are not degenerate."""
    torch.manual_seed(0)
    info = catalog.info(name)
    assert info.roles is not None
    model = build(name, classes=3).train(train)
    named = {
        f"{role}.{number}": tap
        for role in ("stages_post", "stages_pre")
        for number, tap in enumerate(getattr(info.roles, role))
    }
    named |= {"pre_pool": info.roles.pre_pool, "last_stage": info.roles.last_stage, "pooled": f"{info.classifier}:in"}
    with torch.no_grad(), Tapped(model, named) as tapped:
        _, maps = tapped(torch.randn(2, 3, *(info.default_size if info.family == "cifar" else info.min_size,) * 2))
    return model, maps


@pytest.mark.parametrize("name", WITH_ROLES)
def test_roles_match_the_network(name):
    model, maps = read(name)
    roles = catalog.info(name).roles
    assert roles is not None
    stages = range(len(roles.stages_post))
    assert len(roles.stages_pre) == len(stages)
    for stage in stages:
        pre, post = maps[f"stages_pre.{stage}"], maps[f"stages_post.{stage}"]
        assert pre.shape == post.shape and pre.ndim == 4
        assert pre.min() < 0, "an activation in front of the tap, or one that overwrote it"
        assert name in LINEAR_STAGES or post.min() >= 0
        if roles.bn_before_relu:
            norm = model.get_submodule(roles.bn_before_relu[stage])
            assert isinstance(norm, nn.BatchNorm2d) and norm.num_features == pre.shape[1]
    sides = [maps[f"stages_post.{stage}"].shape[-1] for stage in stages]
    assert sides == sorted(sides, reverse=True)
    torch.testing.assert_close(maps["pre_pool"].mean((2, 3)), maps["pooled"])
    assert maps["last_stage"].shape == maps[f"stages_post.{len(stages) - 1}"].shape
    for module in (*roles.after_last_stage, *((roles.pool,) if roles.pool else ())):
        model.get_submodule(module)
    assert roles.pool or roles.after_last_stage
    assert bool(roles.after_last_stage) == (maps["last_stage"].shape != maps["pre_pool"].shape)


@pytest.mark.parametrize(
    "name",
    ["resnet20", "resnet8x4", "shufflenet_v1", "resnet50", "wrn_16_2", "vgg13", "mobilenet_v1", "torchvision/resnet18"],
)
def test_relu_of_stages_pre_is_stages_post(name):
    _, maps = read(name)
    for stage in range(len([key for key in maps if key.startswith("stages_pre")])):
        assert torch.equal(maps[f"stages_pre.{stage}"].relu(), maps[f"stages_post.{stage}"])


def test_shufflenet_v2_is_read_before_its_shuffle():
    _, maps = read("shufflenet_v2")
    for stage in range(3):
        assert torch.equal(shuffle(maps[f"stages_pre.{stage}"].relu(), 2), maps[f"stages_post.{stage}"])
