"""Fast gradients of depthwise convolutions: torch's own values, without the calls that have no fast kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from compress import models
from compress.training.kernels.depthwise import use_fast_gradients

BACKWARD = torch.ops.aten.convolution_backward.default


class Calls(TorchDispatchMode):
    """Collect (dtype, stride, kernel, narrowest side, input's?, weight's?) of every depthwise gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[torch.dtype, int, int, int, bool, bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is BACKWARD and args[9] > 1:
            gradient, x, weight, _, stride, *_, mask = args
            self.seen.append((gradient.dtype, stride[0], weight.shape[2], min(x.shape[2:]), mask[0], mask[1]))
        return func(*args, **(kwargs or {}))


def gradients(layer: nn.Conv2d, x: Tensor, low: bool) -> tuple[Tensor, Tensor, Tensor, Calls]:
    x = x.clone(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        out = layer(x)
    torch.manual_seed(1)
    with Calls() as calls:
        of_x, of_weight = torch.autograd.grad(
            out, (x, layer.weight), torch.randn(out.shape).to(out.dtype).to(memory_format=torch.channels_last)
        )
    return out, of_x, of_weight, calls


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "height", "width"),
    [
        (3, 1, 1, 8, 8),
        (3, 2, 1, 8, 8),
        (3, 2, 1, 7, 9),
        (3, 2, 0, 9, 9),
        (3, 1, 1, 2, 2),
        (3, 1, 1, 1, 1),
        (3, 1, 1, 5, 2),
        (5, 1, 2, 6, 6),
        (5, 2, 2, 8, 8),
        (3, 3, 1, 10, 11),
    ],
)
def test_gradients_equal_those_of_torch(low, kernel, stride, padding, height, width):
    torch.manual_seed(0)
    layer = nn.Conv2d(24, 24, kernel, stride, padding, groups=24, bias=False)
    x = torch.randn(6, 24, height, width)
    expected = gradients(layer, x, low)[:3]
    off = use_fast_gradients(nn.Sequential(layer))
    *found, calls = gradients(layer, x, low)
    off()

    assert "_conv_forward" not in layer.__dict__
    assert torch.equal(found[0], expected[0])
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if low else {"rtol": 1e-4, "atol": 1e-5}
    for mine, theirs in zip(found[1:], expected[1:], strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, **tolerance)
    assert sum(call[4] for call in calls.seen) == sum(call[5] for call in calls.seen) == 1


@pytest.mark.parametrize("name", ["mobilenet_v2", "shufflenet_v2", "efficientnet_lite0"])
def test_no_network_calls_a_slow_gradient(name):
    """Without the detour each of them does (the control), in bfloat16."""
    torch.manual_seed(0)
    network = models.build(name, classes=10).to(memory_format=torch.channels_last).train()
    x = torch.randn(2, 3, 64 if name.startswith("eff") else 32, 64 if name.startswith("eff") else 32).to(
        memory_format=torch.channels_last
    )

    def slow() -> int:
        with torch.autocast("cpu", torch.bfloat16):
            loss = network(x).square().sum()
        with Calls() as calls:
            loss.backward()
        assert calls.seen
        low = torch.bfloat16
        return sum(
            (dtype == low and ((stride > 1 and of_x) or (kernel != 3 and of_weight)))
            or (stride == 1 and side < 3 and kernel == 3 and of_weight)
            for dtype, stride, kernel, side, of_x, of_weight in calls.seen
        )

    assert slow() > 0
    off = use_fast_gradients(network)
    assert slow() == 0
    off()
    assert not any("_conv_forward" in module.__dict__ for module in network.modules())


def test_other_convolutions_are_left_alone():
    network = nn.Sequential(
        nn.Conv2d(8, 8, 3),
        nn.Conv2d(8, 8, 3, groups=4),
        nn.Conv2d(8, 16, 3, groups=8),
        nn.Conv2d(8, 8, 3, groups=8, bias=True),
        nn.Conv2d(8, 8, 3, groups=8, bias=False, dilation=2),
        nn.Conv2d(8, 8, 3, groups=8, bias=False, padding="same"),
    )
    use_fast_gradients(network)
    assert not any("_conv_forward" in module.__dict__ for module in network)


def test_a_subclassed_convolution_keeps_its_own_forward():
    class Doubled(nn.Conv2d):
        def _conv_forward(self, x, weight, bias):
            return super()._conv_forward(x, 2 * weight, bias)

    network = nn.Sequential(
        Doubled(4, 4, 3, 2, 1, groups=4, bias=False), nn.Conv2d(4, 4, 3, 2, 1, groups=4, bias=False)
    )
    off = use_fast_gradients(network)
    assert ["_conv_forward" in layer.__dict__ for layer in network] == [False, True]
    off()
