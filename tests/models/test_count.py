from __future__ import annotations

import torch
from torch import nn

from compress.models import build
from compress.models.count import macs, params


def test_counts_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, groups=4),
        nn.Flatten(),
        nn.Linear(32, 5),
    )

    assert params(model) == (3 * 8 * 9 + 8) + 16 + (2 * 8 * 9 + 8) + (32 * 5 + 5)
    assert macs(model, 8) == 4 * 4 * 8 * (3 * 9) + 2 * 2 * 8 * (2 * 9) + 32 * 5


def test_counting_leaves_the_model_as_it_was():
    model = build("resnet8", classes=10).train()
    model.layer2.eval()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]

    total = macs(model, 32)

    assert total == macs(model, 32) > 0
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(parameter.device.type == "cpu" and parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
