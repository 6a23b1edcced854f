"""AdamW, parameters without decay, clipped gradients, a moving average of the weights, and early stopping."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.core.errors import Interrupted
from compress.data.augment import views
from compress.methods import MethodContext
from compress.training import shipped_weights
from compress.training.optimization import MovingAverage, build_optimizer
from tests.support.tiny_training import (
    DHKD,
    NORMALIZATION,
    SHAPE,
    VALIDATION,
    Net,
    PowerCut,
    RecordingProgress,
    cut_power,
    fit,
    image_set,
    press_ctrl_c,
    same,
    settings,
    state_of,
    student_and_method,
)
from tests.training.test_loop import Recording

pytestmark = pytest.mark.usefixtures("one_thread")
ALL = {"optimizer": "adamw", "lr": 0.01, "decay_norms": False, "clip_norm": 0.5, "ema": 0.9}


def trained(folder, **changes: Any) -> tuple[nn.Module, nn.Module, list[Tensor]]:
    """Return a network before and after two epochs on unchanged images, and the images of each batch."""
    torch.manual_seed(0)
    student = Net()
    before = copy.deepcopy(student)
    method = Recording(None, MethodContext(SHAPE, None, torch.zeros(1), torch.zeros(1)))
    config = settings(epochs=2, **{"lr": 0.1, **changes})
    fit(folder, student, method, config=config, data=image_set(augment="none"))
    return before, student, method.__dict__["batches"]


def by_hand(net: nn.Module, batches: list[Tensor], optimizer: torch.optim.Optimizer, lr: float, after: Any) -> None:
    """Take the same steps with torch's own optimizer; `after`: called after each backward pass and step."""
    data = image_set(augment="none")
    for step, index in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = lr / 2 * (1 + math.cos(math.pi * step / 6))
        optimizer.zero_grad()
        x = views.to_float(data.images[index], NORMALIZATION.mean, NORMALIZATION.std)
        nn.functional.cross_entropy(net.train()(x), data.labels[index]).backward()
        after("gradient", step)
        optimizer.step()
        after("step", step)


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    for name, value in one.named_parameters():
        torch.testing.assert_close(value, other.get_parameter(name), rtol=1e-4, atol=1e-6, msg=name)


def test_adamw_steps_as_torchs_own(tmp_path):
    net, student, batches = trained(tmp_path, optimizer="adamw", lr=0.01, weight_decay=0.1)
    by_hand(net, batches, torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1), 0.01, lambda *_: None)
    assert_equal(net, student)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_norms_and_biases_are_not_decayed_where_the_recipe_says_so(tmp_path, optimizer):
    net, student, batches = trained(tmp_path, optimizer=optimizer, lr=0.01, weight_decay=0.3, decay_norms=False)
    groups = [
        {"params": [net.conv.weight, net.fc.weight], "weight_decay": 0.3},
        {"params": [net.bn.weight, net.bn.bias, net.fc.bias], "weight_decay": 0.0},
    ]
    own = torch.optim.AdamW(groups) if optimizer == "adamw" else torch.optim.SGD(groups, momentum=0.9)
    by_hand(net, batches, own, 0.01, lambda *_: None)
    assert_equal(net, student)


def test_gradients_are_clipped_to_their_norm(tmp_path):
    net, student, batches = trained(tmp_path, clip_norm=0.05, momentum=0.0, weight_decay=0.0)
    norms: list[float] = []

    def clip(when: str, _: int) -> None:
        if when == "gradient":
            norms.append(float(torch.cat([p.grad.flatten() for p in net.parameters()]).norm()))
            for p in net.parameters():
                p.grad *= min(1.0, 0.05 / norms[-1])

    by_hand(net, batches, torch.optim.SGD(net.parameters(), lr=0.1), 0.1, clip)
    assert max(norms) > 0.05
    assert_equal(net, student)


def test_the_average_ships_with_statistics_of_its_own(tmp_path):
    net, student, batches = trained(tmp_path, ema=0.4)
    average = copy.deepcopy(net)

    def move(when: str, step: int) -> None:
        if when == "step":
            kept = min(0.4, (1 + step) / (10 + step))
            with torch.no_grad():
                for p, q in zip(average.parameters(), net.parameters(), strict=True):
                    p.mul_(kept).add_((1 - kept) * q)

    by_hand(net, batches, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4), 0.1, move)
    assert_equal(average, student)
    assert not torch.allclose(net.conv.weight, student.conv.weight, rtol=1e-3)
    data = image_set(augment="none")
    maps = student.conv(views.to_float(data.images[VALIDATION:], NORMALIZATION.mean, NORMALIZATION.std)).detach()
    torch.testing.assert_close(student.bn.running_mean, maps.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(student.bn.running_var, maps.var((0, 2, 3), correction=0), rtol=1e-5, atol=1e-6)


def test_validation_sees_the_average_and_training_goes_on_from_the_weights(tmp_path):
    seen: list[list[Tensor]] = []
    plain, averaged = {}, {}
    for config, states in (({}, plain), ({"ema": 0.9, "batch_norm": "frozen"}, averaged)):
        (tmp_path / str(len(config))).mkdir()
        student, method = student_and_method()
        progress = RecordingProgress(8, cut_power)  # in the third epoch
        with pytest.raises(PowerCut):
            fit(
                tmp_path / str(len(config)),
                student,
                method,
                config=settings(**{"batch_norm": "frozen", **config}),
                progress=progress,
            )
        states["weights"] = [p.detach().clone() for p in student.parameters()]
        seen.append([row["top1_validation"] for row in progress.rows])
    assert same(plain["weights"], averaged["weights"]) and len(seen[0]) == len(seen[1]) == 2


def test_the_average_is_swapped_in_and_out():
    parameters = [torch.tensor([1.0, 2.0]), torch.tensor([3.0])]
    average = MovingAverage(parameters, 0.9, [torch.tensor([5.0, 6.0]), torch.tensor([7.0])])
    average.swap()
    assert [p.tolist() for p in parameters] == [[5, 6], [7]] and average.values[1].tolist() == [3]
    average.swap()
    average.update(torch.tensor(10**6))
    assert average.values[0].tolist() == pytest.approx([0.9 * 5 + 0.1, 0.9 * 6 + 0.2])


@pytest.mark.parametrize("after", [1, 4, 5])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_an_interrupted_training_ends_with_the_same_bits(tmp_path, after, keep):
    config = settings(keep=keep, batch_norm="recomputed", **ALL)
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole, parts = student_and_method(DHKD), student_and_method(DHKD)
    fitted = fit(tmp_path / "whole", *whole, config=config)
    stop, stopped = (cut_power, PowerCut) if after == 4 else (press_ctrl_c, Interrupted)
    with pytest.raises(stopped):
        fit(tmp_path / "parts", *student_and_method(DHKD), config=config, progress=RecordingProgress(after, stop))
    again = fit(tmp_path / "parts", *parts, config=config)
    assert same(state_of(*whole), state_of(*parts)) and again.shipped_epoch == fitted.shipped_epoch
    # A run that was killed between the last checkpoint and the stage's end.
    student, method = student_and_method(DHKD)
    fit(tmp_path / "parts", student, method, config=config)
    assert same(state_of(*whole), state_of(student, method))


@pytest.mark.parametrize(
    ("reached", "patience", "epochs", "best"),
    [((0.5, 0.6, 0.6, 0.5), 2, 4, 3), ((0.5, 0.4, 0.3), 2, 3, 1), ((0.1, 0.2, 0.3, 0.4, 0.5, 0.6), 1, 6, 6)],
)
def test_training_stops_after_epochs_without_a_better_one(tmp_path, monkeypatch, reached, patience, epochs, best):
    told = iter(reached)
    monkeypatch.setattr(shipped_weights, "accuracy", lambda logits, labels: next(told))
    config = settings(epochs=6, patience=patience, keep="best")
    fitted = fit(tmp_path, *student_and_method(), config=config)
    assert len(fitted.history) == epochs and fitted.shipped_epoch == best
    again = fit(tmp_path, *student_and_method(), config=config)  # nothing is validated any more
    assert len(again.history) == epochs and again.shipped_epoch == best


def test_without_options_the_optimizer_is_the_papers():
    net = Net()
    optimizer = build_optimizer(list(net.parameters()), settings())
    assert type(optimizer) is torch.optim.SGD and len(optimizer.param_groups) == 1
    (group,) = optimizer.param_groups
    assert (group["momentum"], group["weight_decay"], group["nesterov"], group["fused"]) == (0.9, 5e-4, False, True)
    assert len(group["params"]) == 5
