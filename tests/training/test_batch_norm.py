"""BatchNorm's statistics: recomputed exactly, kept, resumed with the same bits, and warned about where they lag."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress.core.errors import Interrupted
from compress.core.records.training_checks import TrainingChecks
from compress.data.augment import views
from compress.data.augment.crops import decode_training_view
from compress.data.streaming.batches import Stream
from compress.data.streaming.listing import Listing
from compress.methods import build_method
from compress.models.residual_add import ResidualAdd
from compress.recipe.schema import Distill
from compress.training import batch_norm, schedule
from compress.training.checks import check_training
from compress.training.evaluation import ImageSet, predict
from compress.training.kernels import use_fast_kernels
from compress.verdict import training_warnings
from tests.support import distributed_steps
from tests.support.tiny_training import (
    CLASSES,
    NORMALIZATION,
    SHAPE,
    SIDE,
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

pytestmark = pytest.mark.usefixtures("one_thread")
MEAN, STD = torch.tensor(NORMALIZATION.mean), torch.tensor(NORMALIZATION.std)


class Deep(nn.Module):
    """Two BatchNorms, a residual sum and dropout: what fuses in the CPU kernels, and what must not be drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(6, momentum=0.01), nn.BatchNorm2d(6, momentum=0.01)
        self.relu, self.add, self.last = nn.ReLU(), ResidualAdd(), nn.ReLU()
        self.dropout, self.fc = nn.Dropout(0.5), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.first(x)))
        x = self.last(self.add(self.bn2(self.second(self.dropout(x))), x))
        return self.fc(x.mean((2, 3)))


def deep() -> nn.Module:
    torch.manual_seed(2)
    return Deep().to(memory_format=torch.channels_last)


def pixels(count: int) -> Tensor:
    return torch.randint(0, 256, (count, SIDE, SIDE, 3), generator=torch.Generator().manual_seed(4)).to(torch.uint8)


def test_statistics_of_batches_are_combined_to_those_of_all_values():
    net, images = Net(), pixels(37)
    batch_norm.recompute(net, torch.split(images, [16, 16, 5]), MEAN, STD)
    maps = net.conv(views.to_float(images, MEAN, STD)).double()
    torch.testing.assert_close(net.bn.running_mean.double(), maps.mean((0, 2, 3)), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(net.bn.running_var.double(), maps.var((0, 2, 3), correction=0), rtol=1e-6, atol=1e-7)


def test_a_deeper_layer_sees_what_training_mode_gives_it_and_nothing_is_dropped():
    net, images = deep(), pixels(16)
    batch_norm.recompute(net, [images], MEAN, STD)
    with torch.no_grad():
        x = net.first(views.to_float(images, MEAN, STD))
        x = torch.relu(nn.functional.batch_norm(x, None, None, net.bn1.weight, net.bn1.bias, True))
        maps = net.second(x)
    torch.testing.assert_close(net.bn2.running_mean, maps.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    assert net.training and net.bn1.training and net.dropout.training  # as it was


class Activated(nn.BatchNorm2d):
    """A BatchNorm that activates too, as those of timm do."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(super().forward(x))


def test_a_layer_that_does_more_than_normalise_still_does_it():
    net, images = deep(), pixels(16)
    assert isinstance(net, Deep)
    net.bn1, net.relu = Activated(6), nn.Identity()
    batch_norm.recompute(net, [images], MEAN, STD)
    with torch.no_grad():
        x = net.first(views.to_float(images, MEAN, STD))
        x = torch.relu(nn.functional.batch_norm(x, None, None, net.bn1.weight, net.bn1.bias, True))
        maps = net.second(x)
    torch.testing.assert_close(net.bn2.running_mean, maps.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    assert net.bn1.num_batches_tracked == 0 and net.bn1.training


def test_it_changes_statistics_alone_and_gives_the_same_bits_beside_the_cpu_kernels():
    plain, fused = deep(), deep()
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    restore, _ = use_fast_kernels(fused, SIDE, "auto", lambda text: None)
    for net in (plain, fused):
        batch_norm.recompute(net, torch.split(pixels(40), 20), MEAN, STD)
    restore()
    assert same(state_of(plain), state_of(fused))
    changed = {name for name, value in plain.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"bn{n}.running_{what}" for n in (1, 2) for what in ("mean", "var")}
    assert "forward" not in plain.bn1.__dict__


@pytest.mark.parametrize(
    ("count", "side", "sizes"), [(540, 224, {60}), (3, 32, {3}), (33, 448, {11}), (65, 32, {32, 33})]
)
def test_batches_depend_on_the_number_of_images_and_their_side_alone(count, side, sizes):
    parts = batch_norm.fixed_batches(torch.arange(count), side)
    assert {len(part) for part in parts} == sizes and torch.cat(list(parts)).tolist() == list(range(count))


# --- in a training


def test_a_training_ends_with_the_statistics_of_its_training_views(tmp_path, monkeypatch):
    monkeypatch.setattr(batch_norm, "VIEWS", 24)
    student, method = student_and_method()
    data = image_set()
    fit(tmp_path, student, method, config=settings(batch_norm="recomputed"), data=data)
    index = schedule.order(data.train_index, 7, 0)[:24]
    assert set(index.tolist()) <= set(data.train_index.tolist())  # never a validation image
    view = views.views_of(index, 0, 7, "crop_flip", None, SIDE)
    seen = views.apply_views(data.images, index, view, "crop_flip", SIDE)
    maps = student.conv(views.to_float(seen, MEAN, STD)).detach()
    torch.testing.assert_close(student.bn.running_mean, maps.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(student.bn.running_var, maps.var((0, 2, 3), correction=0), rtol=1e-5, atol=1e-6)


def test_weights_are_those_of_running_statistics_bit_for_bit(tmp_path):
    nets = {}
    for name in (None, "running", "recomputed"):
        (tmp_path / str(name)).mkdir()
        student, method = student_and_method()
        fitted = fit(tmp_path / str(name), student, method, config=settings(batch_norm=name))
        nets[name] = dict(student.named_parameters()), state_of(student), fitted.history
    assert same(nets[None][1], nets["running"][1]) and not same(nets[None][1], nets["recomputed"][1])
    for name, value in nets[None][0].items():
        assert torch.equal(value, nets["recomputed"][0][name]), name


def test_every_epochs_validation_uses_recomputed_statistics(tmp_path):
    student, method = student_and_method()
    student.bn.momentum = 1e-6  # running statistics never arrive
    with torch.no_grad():
        student.bn.running_mean.fill_(50.0)
    fitted = fit(tmp_path, student, method, config=settings(epochs=6, batch_norm="recomputed"))
    assert fitted.history[-1]["top1_validation"] > 0.8


@pytest.mark.parametrize("after", [1, 3, 4])
@pytest.mark.parametrize("mode", ["recomputed", "frozen"])
def test_an_interrupted_training_ends_with_the_same_bits(tmp_path, mode, after):
    config = settings(batch_norm=mode)
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole, parts = student_and_method(), student_and_method()
    fit(tmp_path / "whole", *whole, config=config)
    stop, stopped = (press_ctrl_c, Interrupted) if after != 4 else (cut_power, PowerCut)
    with pytest.raises(stopped):
        fit(tmp_path / "parts", *student_and_method(), config=config, progress=RecordingProgress(after, stop))
    fit(tmp_path / "parts", *parts, config=config)
    assert same(state_of(*whole), state_of(*parts))


def test_frozen_statistics_stay_and_weights_train(tmp_path):
    student, method = student_and_method()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    fit(tmp_path, student, method, config=settings(batch_norm="frozen"))
    changed = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"conv.weight", "bn.weight", "bn.bias", "fc.weight", "fc.bias"}


def test_a_layer_of_the_method_that_ships_gets_its_statistics_too(tmp_path):
    class Projecting(nn.Module):
        def __init__(self, net: nn.Module, bn: nn.Module) -> None:
            super().__init__()
            self.net, self.bn = net, bn

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.net(x))

    student, method = (
        Net(),
        build_method(Distill(method=("none",)), student=SHAPE, teacher=None, train_labels=torch.zeros(1)),
    )
    method.bn = nn.BatchNorm1d(CLASSES)
    method.deployed = lambda net: Projecting(net, method.bn)
    fit(tmp_path, student, method, config=settings(epochs=1, batch_norm="recomputed"))
    assert not torch.equal(method.bn.running_mean, torch.zeros(CLASSES))


# --- warned about


def lagging() -> nn.Module:
    """A network that is right with the statistics of a batch, and always answers the same with its own."""
    net = Net()
    with torch.no_grad():
        net.conv.weight.zero_()
        for channel in range(3):
            net.conv.weight[channel, channel, 1, 1] = 1.0
        net.fc.weight.zero_()
        net.fc.weight[:, :3] = torch.eye(3)
        net.bn.running_mean.copy_(torch.tensor([-9.0, 9.0, 9.0, 0, 0, 0]))
    return net


@pytest.mark.parametrize(
    ("mode", "cause"),
    [
        (None, "after 100 steps with a momentum of 0.01 they consist to 37 % of what training started from"),
        ("frozen", "those of the pretrained weights were kept"),
        ("recomputed", "validation images differ from training images"),
    ],
)
def test_a_gap_to_training_mode_is_a_warning_that_names_its_cause(mode, cause):
    net, data = lagging(), image_set(validation=30)
    net.bn.momentum = 0.01
    before = state_of(net)
    checks = check_training(net, data, NORMALIZATION, settings(batch_norm=mode), 100)
    assert same(before, state_of(net)) and checks.images == 30 and checks.right == 10 and checks.lost >= 15
    (warning,) = training_warnings.of_training("student", checks)
    assert warning.affects_verdict and cause in str(warning) and str(warning).startswith("student: ")


def test_there_is_no_warning_without_a_gap():
    net, data = lagging(), image_set(validation=30)
    batch_norm.recompute(net, [data.images[data.train_index]], MEAN, STD)
    checks = check_training(net, data, NORMALIZATION, settings(batch_norm="recomputed"), 100)
    assert checks.right >= 25 and not training_warnings.of_training("student", checks)
    assert not training_warnings.of_training("student", None)
    assert not training_warnings.of_training("student", TrainingChecks(30, 20, 9, "running"))


def test_training_mode_answers_do_not_depend_on_the_order_of_the_result():
    net, data = lagging(), image_set()
    index = torch.arange(12)
    logits = [
        batch_norm.predict_by_batch(net, data.images[:12], order, SIDE, MEAN, STD) for order in (index, index.flip(0))
    ]
    torch.testing.assert_close(logits[0], logits[1])
    assert not torch.allclose(logits[0], predict(net, data.images[:12], SIDE, NORMALIZATION))


def test_a_set_without_validation_images_is_not_checked():
    data = replace(image_set(), validation_index=torch.arange(0))
    assert check_training(Net(), data, NORMALIZATION, settings(), 1) is None


def test_images_that_stay_in_their_files_give_the_statistics_of_their_views(tmp_path, monkeypatch):
    monkeypatch.setattr(batch_norm, "VIEWS", 20)
    monkeypatch.setattr(batch_norm, "SMALLEST", 8)
    monkeypatch.setattr(batch_norm, "BATCH", 8)  # three batches, smaller than those of training
    noise, labels = distributed_steps.images_and_labels()
    listing = Listing(distributed_steps.filed(noise, tmp_path))
    stream = Stream(listing, augment="resized_crop", workers=1, device="cpu", crop_scale=(0.5, 1.0))
    data = ImageSet(stream, labels % CLASSES, torch.arange(12, 36), torch.arange(12), "resized_crop", SIDE, noise[:12])
    student, method = student_and_method(Distill(method=("none",)))
    fit(tmp_path, student, method, config=settings(epochs=1, batch_norm="recomputed"), data=data)
    index = schedule.order(data.train_index, 7, 0)[:20]
    view = views.views_of(index, 0, 7, "resized_crop", None, SIDE)
    seen = [
        listing.decoded(
            int(at), lambda content, number=int(number): decode_training_view(content, number, SIDE, (0.5, 1))
        )
        for at, number in zip(index, view, strict=True)
    ]
    maps = student.conv(views.to_float(torch.from_numpy(np.stack(seen)), MEAN, STD)).detach()
    torch.testing.assert_close(student.bn.running_mean, maps.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(student.bn.running_var, maps.var((0, 2, 3), correction=0), rtol=1e-5, atol=1e-6)
