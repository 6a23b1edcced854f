from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compress.core.errors import StageError, UsageError
from compress.models import build
from compress.models.taps import Tapped


class Twice(nn.Module):
    """One ReLU called twice, one module never called, one tensor overwritten in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.relu = nn.ReLU()
        self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.relu(self.first(x)))
        y += x
        return self.relu(y)


def hooks_on(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_pooled_vector_gives_the_logits_and_carries_gradients():
    model = build("resnet8", classes=5).eval()
    x = torch.randn(2, 3, 16, 16)

    with Tapped(model, {"pooled": "fc:in", "map": "layer3:out"}) as tapped:
        logits, features = tapped(x)
    features["pooled"].sum().backward()

    assert torch.equal(logits, model(x))
    assert torch.equal(model.fc(features["pooled"]), logits)
    torch.testing.assert_close(features["map"].mean((2, 3)), features["pooled"])
    assert model.conv1.weight.grad is not None and model.fc.weight.grad is None


def test_state_is_untouched_and_hooks_go_with_close():
    model = build("resnet8", classes=5)
    keys = list(model.state_dict())

    tapped = Tapped(model, {"pooled": "fc:in", "logits": "fc:out"})
    assert list(model.state_dict()) == keys
    assert hooks_on(model) == 2
    tapped.close()

    assert hooks_on(model) == 0
    with pytest.raises(RuntimeError, match="these taps are closed"):
        tapped(torch.randn(2, 3, 16, 16))


def test_nothing_is_kept_between_calls_or_from_plain_forward_passes():
    model = build("resnet8", classes=5).eval()
    x = torch.randn(2, 3, 16, 16)

    with Tapped(model, {"pooled": "fc:in"}) as tapped:
        model(x)
        _, first = tapped(x)
        _, second = tapped(x[:1])
        kept = [len(calls) for calls in tapped._record.seen.values()]

    assert (first["pooled"].shape[0], second["pooled"].shape[0]) == (2, 1)
    assert kept == [0]


def test_two_sets_of_taps_live_on_one_model():
    model = build("resnet8", classes=5).eval()
    x = torch.randn(2, 3, 16, 16)

    with Tapped(model, {"a": "fc:in"}) as one, Tapped(model, {"b": "fc:in"}) as other:
        _, first = one(x)
        _, second = other(x)

    assert torch.equal(first["a"], second["b"])


def test_second_call_is_tapped_by_its_number():
    model, x = Twice(), torch.randn(3, 4)

    with torch.no_grad(), Tapped(model, {"first": "relu:in#1", "sum": "relu:in#2", "out": "relu:out#2"}) as tapped:
        logits, features = tapped(x)

    assert torch.equal(features["first"], model.first(x))
    assert torch.equal(features["sum"].relu(), logits)
    assert torch.equal(features["out"], logits)


def test_channel_parts_joined_maps_and_weights_can_be_tapped():
    model = build("resnet8", classes=5)
    with (
        torch.no_grad(),
        Tapped(
            model, {"half": "layer3:out[2/2]", "both": "fc:in[1/2] + fc:in", "head": "fc:weight", "map": "layer3:out"}
        ) as tapped,
    ):
        _, features = tapped(torch.randn(2, 3, 16, 16))

    assert torch.equal(features["half"], features["map"][:, 32:])
    assert features["both"].shape == (2, 96) and torch.equal(features["both"][:, :32], features["both"][:, 32:64])
    assert features["head"] is model.fc.weight


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        ("relu:in", "tap 'relu:in': 'relu' is called 2 times; say which, as in 'relu:in#2'"),
        ("relu:in#3", "tap 'relu:in#3': 'relu' is called only 2 times"),
        ("unused:out", "tap 'unused:out': the forward pass does not call 'unused'; tap a module that it calls"),
        (
            "second:out",
            "tap 'second:out': the network overwrites this tensor in place; tap the input of the module that follows",
        ),
    ],
)
def test_tap_that_cannot_be_read(tap: str, message: str):
    with Tapped(Twice(), {"x": tap}) as tapped, pytest.raises(StageError) as error:
        tapped(torch.randn(3, 4))

    assert str(error.value) == message


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        ("fcc:in", "tap 'fcc:in': ResNet has no module 'fcc' (did you mean 'fc'?)"),
        ("layer3.4:out", "tap 'layer3.4:out': ResNet has no module 'layer3.4' (did you mean 'layer3.0'?)"),
        ("fc", "tap 'fc': write it as `module:in` or `module:out`, followed by `#2` for a second call"),
        ("fc:in[3/2]", "tap 'fc:in[3/2]': there is no part 3 of 2"),
        ("fc:in#0", "tap 'fc:in#0': write it as `module:in` or `module:out`, followed by `#2` for a second call"),
    ],
)
def test_wrong_tap_leaves_no_hook(tap: str, message: str):
    model = build("resnet8", classes=5)

    with pytest.raises(UsageError) as error:
        Tapped(model, {"good": "fc:in", "x": tap})

    assert str(error.value) == message
    assert hooks_on(model) == 0


@pytest.mark.slow
def test_compiles_as_one_graph():
    model = build("resnet8", classes=5).eval()
    x = torch.randn(2, 3, 16, 16)

    with torch.no_grad(), Tapped(model, {"pooled": "fc:in"}) as tapped:
        _, plain = tapped(x)
        _, compiled = torch.compile(tapped, backend="eager", fullgraph=True)(x)

    assert torch.equal(plain["pooled"], compiled["pooled"])
