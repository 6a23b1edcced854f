"""Checkpoints laid out as other projects write them: names, shapes, wrappers, and a forward pass by those names.

Names and nesting as in RepDistiller and mdistiller; the files are stand-ins with random values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from compress.models import build
from compress.models.checkpoints import load_state, read_state

State = dict[str, Tensor]
Shapes = Iterator[tuple[str, tuple[int, ...]]]


def conv(name: str, out: int, width_in: int, kernel: int, *, bias: bool = False) -> Shapes:
    yield f"{name}.weight", (out, width_in, kernel, kernel)
    if bias:
        yield f"{name}.bias", (out,)


def norm(name: str, width: int) -> Shapes:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", (width,)
    yield f"{name}.num_batches_tracked", ()


def linear(name: str, width: int) -> Shapes:
    yield from ((f"{name}.weight", (5, width)), (f"{name}.bias", (5,)))


def wrn_16_1() -> Shapes:
    yield from conv("conv1", 16, 3, 3)
    for number, (width_in, width) in enumerate(((16, 16), (16, 32), (32, 64)), 1):
        for unit in range(2):
            here, name = (width_in if unit == 0 else width), f"block{number}.layer.{unit}"
            yield from (*norm(f"{name}.bn1", here), *conv(f"{name}.conv1", width, here, 3), *norm(f"{name}.bn2", width))
            yield from conv(f"{name}.conv2", width, width, 3)
            if here != width:
                yield from conv(f"{name}.convShortcut", width, here, 1)
    yield from (*norm("bn1", 64), *linear("fc", 64))


def vgg8() -> Shapes:
    for number, (width_in, width) in enumerate(((3, 64), (64, 128), (128, 256), (256, 512), (512, 512))):
        yield from (*conv(f"block{number}.0", width, width_in, 3, bias=True), *norm(f"block{number}.1", width))
    yield from linear("classifier", 512)


def resnet50() -> Shapes:
    yield from (*conv("conv1", 64, 3, 3), *norm("bn1", 64))
    width_in = 64
    for number, (width, units) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 1):
        for unit in range(units):
            name = f"layer{number}.{unit}"
            for part, (out, here, kernel) in enumerate(
                ((width, width_in, 1), (width, width, 3), (4 * width, width, 1)), 1
            ):
                yield from (*conv(f"{name}.conv{part}", out, here, kernel), *norm(f"{name}.bn{part}", out))
            if unit == 0:
                yield from (*conv(f"{name}.shortcut.0", 4 * width, width_in, 1), *norm(f"{name}.shortcut.1", 4 * width))
            width_in = 4 * width
    yield from linear("linear", 2048)


def mobilenet_v1() -> Shapes:
    yield from (*conv("model.0.0", 32, 3, 3), *norm("model.0.1", 32))
    widths = (32, 64, 128, 128, 256, 256, *(512,) * 6, 1024, 1024)
    for unit, (width_in, width) in enumerate(zip(widths, widths[1:], strict=False), 1):
        yield from (*conv(f"model.{unit}.0", width_in, 1, 3), *norm(f"model.{unit}.1", width_in))
        yield from (*conv(f"model.{unit}.3", width, width_in, 1), *norm(f"model.{unit}.4", width))
    yield from linear("fc", 1024)


def bn(state: State, name: str, x: Tensor) -> Tensor:
    return functional.batch_norm(
        x, *(state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    )


def conv_bn(state: State, name: str, x: Tensor, number: int | str = 1, stride: int = 1) -> Tensor:
    weight = state[f"{name}conv{number}.weight"]
    return bn(state, f"{name}bn{number}", functional.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2))


def run_wrn_16_1(state: State, x: Tensor) -> Tensor:
    x = functional.conv2d(x, state["conv1.weight"], padding=1)
    for number in (1, 2, 3):
        for unit in range(2):
            name, stride = f"block{number}.layer.{unit}", 2 if number > 1 and unit == 0 else 1
            active = bn(state, f"{name}.bn1", x).relu()
            y = functional.conv2d(active, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            y = functional.conv2d(bn(state, f"{name}.bn2", y).relu(), state[f"{name}.conv2.weight"], padding=1)
            shortcut = state.get(f"{name}.convShortcut.weight")
            x = y + (x if shortcut is None else functional.conv2d(active, shortcut, stride=stride))
    return functional.linear(bn(state, "bn1", x).relu().mean((2, 3)), state["fc.weight"], state["fc.bias"])


def run_vgg8(state: State, x: Tensor) -> Tensor:
    for number in range(5):
        x = functional.conv2d(x, state[f"block{number}.0.weight"], state[f"block{number}.0.bias"], padding=1)
        x = bn(state, f"block{number}.1", x).relu()
        x = functional.max_pool2d(x, 2) if number < 3 else x
    return functional.linear(x.mean((2, 3)), state["classifier.weight"], state["classifier.bias"])


def run_resnet50(state: State, x: Tensor) -> Tensor:
    x = conv_bn(state, "", x).relu()
    for number, units in enumerate((3, 4, 6, 3), 1):
        for unit in range(units):
            name, stride = f"layer{number}.{unit}.", 2 if number > 1 and unit == 0 else 1
            y = conv_bn(state, name, conv_bn(state, name, x).relu(), 2, stride).relu()
            kept = x
            if unit == 0:
                kept = bn(
                    state, f"{name}shortcut.1", functional.conv2d(x, state[f"{name}shortcut.0.weight"], stride=stride)
                )
            x = (conv_bn(state, name, y, 3) + kept).relu()
    return functional.linear(x.mean((2, 3)), state["linear.weight"], state["linear.bias"])


def run_mobilenet_v1(state: State, x: Tensor) -> Tensor:
    x = bn(state, "model.0.1", functional.conv2d(x, state["model.0.0.weight"], stride=2, padding=1)).relu()
    for unit in range(1, 14):
        stride, weight = 2 if unit in (2, 4, 6, 12) else 1, state[f"model.{unit}.0.weight"]
        x = bn(
            state, f"model.{unit}.1", functional.conv2d(x, weight, stride=stride, padding=1, groups=len(weight))
        ).relu()
        x = bn(state, f"model.{unit}.4", functional.conv2d(x, state[f"model.{unit}.3.weight"])).relu()
    return functional.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


LAYOUTS: dict[str, tuple[Callable[[], Shapes], Callable[[State, Tensor], Tensor]]] = {
    "wrn_16_1": (wrn_16_1, run_wrn_16_1),
    "vgg8": (vgg8, run_vgg8),
    "resnet50": (resnet50, run_resnet50),
    "mobilenet_v1": (mobilenet_v1, run_mobilenet_v1),
}


def stand_in(shapes: Shapes) -> State:
    """Return random values, scaled so that maps keep their magnitude."""
    state: State = {}
    for name, shape in shapes:
        fan_in = max(torch.Size(shape[1:]).numel(), 1)
        state[name] = torch.randn(shape) * (2 / fan_in) ** 0.5 if len(shape) > 1 else torch.rand(shape) + 0.5
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(1000)
    return state


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name", LAYOUTS)
def test_benchmark_checkpoint_loads_under_its_own_names(name: str, prefix: str, tmp_path: Path):
    torch.manual_seed(0)
    shapes, forward = LAYOUTS[name]
    state = stand_in(shapes())
    torch.save(
        {"epoch": 240, "model": {prefix + key: value for key, value in state.items()}, "best_acc": 75.61},
        tmp_path / "ckpt_epoch_240.pth",
    )
    model = build(name, classes=5).eval()
    x = torch.randn(2, 3, 32, 32)

    assert load_state(model, read_state(tmp_path / "ckpt_epoch_240.pth"), source="ckpt_epoch_240.pth") == ()

    with torch.no_grad():
        torch.testing.assert_close(model(x), forward(state, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["torchvision/resnet18", "torchvision/mobilenet_v2"])
def test_torchvision_checkpoint_loads(name: str, tmp_path: Path):
    from torchvision.models import get_model

    theirs = get_model(name.removeprefix("torchvision/"), weights=None, num_classes=5).eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    model, x = build(name, classes=5).eval(), torch.randn(2, 3, 32, 32)

    load_state(model, read_state(tmp_path / "weights.pth"), source="weights.pth")

    with torch.no_grad():
        torch.testing.assert_close(model(x), theirs(x))
