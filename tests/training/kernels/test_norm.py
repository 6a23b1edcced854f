"""BatchNorm with its activation against torch's operators in float64, for every network that can be a student."""

from __future__ import annotations

import copy
import ctypes
import math
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compress import models
from compress.models.residual_add import ResidualAdd
from compress.models.taps import Tapped
from compress.training.kernels.library import KernelLibrary, _file, _functions, load_kernels, unavailable_reason
from compress.training.kernels.norm import NO_BOUNDS, _BatchNorm, fuse_batch_norms

RELU, RELU6 = (0.0, math.inf), (0.0, 6.0)


@pytest.fixture(scope="module", params=["native", "x86-64-v3"])
def each(request: pytest.FixtureRequest) -> KernelLibrary:
    """For this processor, and for one without the vectors and the bf16 instructions that it may have."""
    found = made_here()
    if request.param == "native":
        return found
    if platform.machine() != "x86_64" or "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("the second target is for x86-64 with AVX2")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    return _functions(ctypes.CDLL(str(_file(compiler, found.compiler, f"-march={request.param}"))), found.compiler)


@pytest.fixture(scope="module")
def made() -> KernelLibrary:
    return made_here()


def made_here() -> KernelLibrary:
    """The kernels; without a compiler there are none, with one that does not compile them the tests fail."""
    found = load_kernels()
    if found is None and "no C compiler is installed" in unavailable_reason():
        pytest.skip(f"no kernels: {unavailable_reason()}")
    assert found is not None, unavailable_reason()
    return found


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def maps(channels: int, side: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, nn.BatchNorm2d]:
    torch.manual_seed(channels)
    x = (2 * torch.randn(10, channels, side, side) + 5).to(dtype).to(memory_format=torch.channels_last)
    layer = nn.BatchNorm2d(channels)
    with torch.no_grad():
        layer.weight.uniform_(-1, 2)
        layer.bias.uniform_(-1, 3)
    return x, torch.randn(x.shape).to(dtype).to(memory_format=torch.channels_last), layer


def reference(x: Tensor, kept: Tensor | None, gradient: Tensor, layer: nn.BatchNorm2d) -> tuple[Tensor, ...]:
    """What goes into the activation, and the gradients of x, weight, bias and kept, all in float64."""
    exact = [
        value.detach().double().requires_grad_()
        for value in (x, layer.weight, layer.bias, *([] if kept is None else [kept]))
    ]
    inner = functional.batch_norm(exact[0], None, None, exact[1], exact[2], training=True, eps=layer.eps) + (
        0 if kept is None else exact[3]
    )
    return inner.detach(), *torch.autograd.grad(inner, exact, gradient.double())


def within(values: Tensor, bounds: tuple[float, float]) -> Tensor:
    return (values > bounds[0]) & (values < bounds[1])


# channels below, at and beside what a processor computes at once; maps from one place to many chunks, so that shares
# and rests occur
@pytest.mark.parametrize(("channels", "side"), [(1, 9), (3, 40), (12, 16), (58, 7), (64, 24), (1280, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bounds", [NO_BOUNDS, RELU, RELU6])
@pytest.mark.parametrize(("summed", "count"), [(False, 1), (False, 3), (True, 3)])
def test_values_and_gradients_equal_batch_norm_in_float64(each, channels, side, dtype, bounds, summed, count):
    x, gradient, layer = maps(channels, side, dtype)
    kept = (2 * torch.randn(x.shape)).to(dtype).to(memory_format=torch.channels_last) if summed else None
    mean, var = layer.running_mean.clone(), layer.running_var.clone()

    with threads(count):
        inputs = [x.requires_grad_(), layer.weight, layer.bias, *([kept.requires_grad_()] if kept is not None else [])]
        mine = _BatchNorm.apply(x, kept, layer.weight, layer.bias, layer, bounds, each)
        found = torch.autograd.grad(mine, inputs, gradient)

    inner, *expected = reference(x, kept, gradient, layer)
    # At a bound's very edge rounding decides whether a gradient passes: with a sum as with torch's operators, whose sum
    # is in the maps' own precision.
    passes = within(mine if summed else inner, bounds)
    edge = 4e-2 if summed and dtype == torch.bfloat16 else 1e-5
    inside = ((inner - bounds[0]).abs() > edge) & ((inner - bounds[1]).abs() > edge)
    assert torch.equal(passes[inside], within(inner, bounds)[inside]) and inside.float().mean() > 0.95
    _, *expected = reference(x, kept, gradient * passes, layer)

    assert mine.dtype == found[0].dtype == dtype and mine.is_contiguous(memory_format=torch.channels_last)
    close = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 2e-5}
    torch.testing.assert_close(mine.double(), inner.clamp(*bounds), **close)
    places = slice(None) if summed else inside
    torch.testing.assert_close(found[0].double()[places], expected[0][places], **close)
    if summed:
        assert torch.equal(found[3].double(), expected[3])
    for other, exact in zip(found[1:3], expected[1:3], strict=True):
        torch.testing.assert_close(other.double(), exact, rtol=1e-4, atol=1e-4 * float(expected[1].abs().max() + 1))

    count_values = x.numel() // channels
    exact = x.detach().double()
    torch.testing.assert_close(
        layer.running_mean.double(), 0.9 * mean.double() + 0.1 * exact.mean((0, 2, 3)), rtol=1e-5, atol=1e-6
    )
    if count_values > 1:
        torch.testing.assert_close(
            layer.running_var.double(), 0.9 * var.double() + 0.1 * exact.var((0, 2, 3)), rtol=1e-5, atol=1e-6
        )


def test_the_variance_is_exact_when_the_mean_is_large(made):
    """Sums of squares would lose it: 1e4 away, float32 leaves 1e-3 of a deviation of 1."""
    x = (torch.randn(32, 6, 16, 16) + 1e4).to(memory_format=torch.channels_last)
    layer = nn.BatchNorm2d(6, momentum=1.0)
    _BatchNorm.apply(x, None, layer.weight, layer.bias, layer, NO_BOUNDS, made)
    torch.testing.assert_close(layer.running_var.double(), x.double().var((0, 2, 3)), rtol=1e-4, atol=0)


def test_repeated_calls_give_the_same_bits(made):
    x, gradient, layer = maps(58, 24, torch.float32)
    with threads(2):
        runs = []
        for _ in range(3):
            out = _BatchNorm.apply(x.requires_grad_(), None, layer.weight, layer.bias, layer, RELU, made)
            runs.append((out, *torch.autograd.grad(out, (x, layer.weight, layer.bias), gradient)))
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_is_propagated(each, dtype):
    x, _, layer = maps(8, 6, dtype)
    x[3, 5, 2, 2] = math.nan
    out = _BatchNorm.apply(x, None, layer.weight, layer.bias, layer, RELU6, each)
    assert out[:, 5].isnan().all() and not out[:, :5].isnan().any()


def gradients(network: nn.Module, x: Tensor) -> Tensor:
    """Logits and all gradients in one vector, float64."""
    out = network.train()(x)
    found = torch.autograd.grad(out.square().mean(), list(network.parameters()))
    return torch.cat([value.detach().double().flatten() for value in (out, *found)])


@pytest.mark.parametrize(
    ("name", "side", "norms", "activations", "sums"),
    [
        ("resnet8", 32, 9, 7, 3),
        ("mobilenet_v2", 32, 53, 36, 10),
        ("shufflenet_v1", 32, 49, 46, 13),
        ("shufflenet_v2", 32, 56, 37, 0),
        ("wrn_16_1", 32, 13, 13, 0),
        ("torchvision/resnet18", 64, 20, 1, 0),
    ],
)
@pytest.mark.slow
def test_networks_train_as_with_torchs_operators(made, name, side, norms, activations, sums):
    """An activation called twice, or one whose BatchNorm is also read elsewhere (a sum, a shortcut), is not fused.

    A value at a ReLU's edge may fall to either side, as it may with torch's operators: that alone moves these gradients
    by up to 2 %.
    """
    torch.manual_seed(0)
    network = models.build(name, classes=10).to(memory_format=torch.channels_last)
    x = torch.randn(8, 3, side, side).to(memory_format=torch.channels_last)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    exact = gradients(copy.deepcopy(network).double(), x.double())
    gradients(network, x)
    updated = {key: value.clone() for key, value in network.state_dict().items()}
    network.load_state_dict(before)

    off = fuse_batch_norms(network, side, made)
    changed = [module for module in network.modules() if "forward" in module.__dict__]
    mine = float((gradients(network, x) - exact).norm() / exact.norm())

    assert [sum(isinstance(module, kind) for module in changed) for kind in (nn.BatchNorm2d, nn.ReLU, ResidualAdd)] == [
        norms,
        activations,
        sums,
    ]
    assert mine < 0.1
    for key, value in network.state_dict().items():
        torch.testing.assert_close(value, updated[key], rtol=1e-3, atol=1e-4)
    network.eval()
    with torch.no_grad():
        inside = network(x)
        off()
        assert torch.equal(inside, network(x)) and not any("forward" in module.__dict__ for module in network.modules())


@pytest.mark.parametrize(
    ("name", "tap", "apart", "still"),
    [
        ("resnet8", "layer1.0.bn1:out", "layer1.0.relu1", "layer1.0.bn1"),
        ("resnet8", "layer1.0.relu2:in", "layer1.0.relu2", "layer1.0.sum"),
        ("resnet8", "layer1.0.bn2:out", "layer1.0.sum", "layer1.0.bn2"),
        ("resnet8", "layer1.0.sum:out", "layer1.0.sum", "layer1.0.bn2"),
        ("mobilenet_v2", "blocks.1.1.conv:out", "blocks.1.1.sum", "blocks.1.1.conv.7"),
    ],
)
def test_a_map_that_a_hook_reads_is_not_fused(made, name, tap, apart, still):
    """A hook on any module must see the map between BatchNorm, sum and activation as it is."""
    torch.manual_seed(0)
    network = models.build(name, classes=10).to(memory_format=torch.channels_last)
    x = torch.randn(4, 3, 32, 32).to(memory_format=torch.channels_last)
    with Tapped(network.train(), {"read": tap}) as tapped:
        expected = tapped(x)[1]["read"]
        off = fuse_batch_norms(network, 32, made)
        seen = tapped(x)[1]["read"]
        changed = {name for name, module in network.named_modules() if "forward" in module.__dict__}
        off()
    assert expected.min() < 0  # no activation is in it
    assert apart not in changed and still in changed
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-4)


class Block(nn.Module):
    """A convolution and a BatchNorm, and behind them what a test says."""

    def __init__(self, behind: Callable[[Block, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.bn, self.relu, self.drop = (
            nn.Conv2d(3, 8, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(0.5),
        )
        self.behind = behind

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(self, self.bn(self.conv(x))).mean((2, 3))


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


def written_to(block: Block, y: Tensor) -> Tensor:
    y += 1
    return block.relu(y)


def noisy(block: Block, y: Tensor) -> Tensor:
    return block.relu(y + 0.5 if block.training else y)


READERS = {
    "written to": written_to,
    "in training only": noisy,
    "dropout, nothing in evaluation": lambda block, y: block.relu(block.drop(y)),
    "read beside": lambda block, y: block.relu(y) + y,
    "read without a gradient": lambda block, y: block.relu(y) + 0.5 * y.detach(),
    "a mask": lambda block, y: block.relu(y) * (y > 0.5),
    "a function of its own": lambda block, y: block.relu(y) + Twice.apply(y),
    "called twice": lambda block, y: block.relu(block.relu(y) - 0.5),
    "by name": lambda block, y: block.relu(input=y),
}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("case", READERS)
def test_code_between_batch_norm_and_activation_prevents_fusion(made, case, frozen):
    torch.manual_seed(0)
    network = Block(READERS[case]).to(memory_format=torch.channels_last).train()
    network.requires_grad_(not frozen)
    x = torch.randn(4, 3, 12, 12).to(memory_format=torch.channels_last).requires_grad_()
    before, random = {key: value.clone() for key, value in network.state_dict().items()}, torch.get_rng_state()
    expected = network(x)
    of_x = torch.autograd.grad(expected.square().sum(), x)[0]
    network.load_state_dict(before)
    torch.set_rng_state(random)

    off = fuse_batch_norms(network, 12, made)
    assert torch.equal(torch.get_rng_state(), random) and all(
        torch.equal(value, before[key]) for key, value in network.state_dict().items()
    )
    assert "forward" in network.bn.__dict__ and "forward" not in network.relu.__dict__
    found = network(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), x)[0], of_x, rtol=1e-4, atol=1e-5)
    off()


def test_asking_for_a_shape_does_not_prevent_fusion(made):
    network = Block(lambda block, y: block.relu(y) * (y.shape[1] / y.size(1))).to(memory_format=torch.channels_last)
    off = fuse_batch_norms(network, 12, made)
    assert "forward" in network.relu.__dict__
    off()


def test_one_value_per_channel_raises_torchs_error(made):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    off = fuse_batch_norms(network, 6, made)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        network(torch.randn(1, 3, 1, 1))
    assert network[1].running_var.isfinite().all()
    off()


def test_unsupported_layers_run_in_torch(made):
    unbiased = nn.BatchNorm2d(4)
    unbiased.bias = None
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.BatchNorm2d(4, affine=False),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.BatchNorm2d(4, momentum=None),
        unbiased,
        nn.BatchNorm2d(4),
    )
    off = fuse_batch_norms(network, 6, made)
    assert [number for number, module in enumerate(network) if "forward" in module.__dict__] == [5]
    network.double()
    out = network(torch.randn(2, 3, 6, 6, dtype=torch.float64))  # float64 maps: torch's operator, through the same call
    out.sum().backward()
    off()
    assert network[5].num_batches_tracked == 1
