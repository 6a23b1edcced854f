"""The linear probe: a last layer fitted by logistic regression, at which fine-tuning starts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from compress.core.errors import Interrupted
from compress.core.records.training_checks import TrainingChecks
from compress.data.augment import views
from compress.models.input_adapter import InputAdapter
from compress.training import linear_probe
from compress.training.checks import check_training
from compress.training.evaluation import accuracy, predict
from compress.training.linear_probe import fit_probe, regress
from compress.verdict import training_warnings
from tests.support.tiny_training import (
    CLASSES,
    NORMALIZATION,
    SIDE,
    Net,
    RecordingProgress,
    fit,
    image_set,
    press_ctrl_c,
    same,
    settings,
    state_of,
    student_and_method,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def fitted(net: nn.Module, head: str = "fc", **changes):
    return fit_probe(net, head, image_set(), NORMALIZATION, seed=0, threads=1, **changes)


def test_two_points_have_the_solution_of_the_closed_form():
    # One feature, two classes at +1 and -1: with w = w_1 - w_0 the stationary point is w = 2 s(-w) / penalty.
    features, labels = torch.tensor([[1.0], [-1.0]], dtype=torch.float64), torch.tensor([1, 0])
    for penalty, (weight, bias) in zip((0.5, 0.1), regress(features, labels, 2, (0.5, 0.1)), strict=True):
        w = float(weight[1, 0] - weight[0, 0])
        assert w == pytest.approx(2 / penalty / (1 + math.exp(w)), rel=1e-4)
        assert float(weight.sum()) == pytest.approx(0, abs=1e-6) and float((bias[1] - bias[0]).abs()) < 1e-6


@pytest.mark.parametrize("penalty", linear_probe.PENALTIES)
def test_the_gradient_vanishes_at_every_penalty(penalty):
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    labels = (features @ torch.randn(5, 3, generator=generator, dtype=torch.float64)).argmax(1)
    *_, (weight, bias) = regress(features, labels, 3, [one for one in linear_probe.PENALTIES if one >= penalty])
    errors = (features @ weight.T + bias).softmax(1) - nn.functional.one_hot(labels, 3)
    assert float((errors.T @ features / 60 + penalty * weight).abs().max()) < 1e-4
    assert float(errors.mean(0).abs().max()) < 1e-4


def test_the_gradient_of_weighted_losses_vanishes_and_balanced_weights_move_the_border():
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    labels = (features[:, 0] + torch.randn(60, generator=generator, dtype=torch.float64) > 1.3).long()
    few = int(labels.sum())
    weights = torch.tensor([60 / (2 * (60 - few)), 60 / (2 * few)], dtype=torch.float64)[labels]
    ((weight, bias),) = regress(features, labels, 2, [0.1], weights)
    errors = ((features @ weight.T + bias).softmax(1) - nn.functional.one_hot(labels, 2)) * weights[:, None]
    assert float((errors.T @ features / 60 + 0.1 * weight).abs().max()) < 1e-4
    ((plain, shift),) = regress(features, labels, 2, [0.1])
    found, before = ((features @ w.T + b).argmax(1)[labels == 1].sum() for w, b in ((weight, bias), (plain, shift)))
    assert before < found <= few


def test_class_weights_choose_layer_and_penalty():
    torch.manual_seed(5)
    net, data = Net(), image_set()
    data.labels[data.train_index[data.labels[data.train_index] == 2][2:]] = 1
    probe = fit_probe(net, "fc", data, NORMALIZATION, seed=0, threads=1)
    weighted = fit_probe(net, "fc", data, NORMALIZATION, seed=0, threads=1, class_weights=torch.tensor([1.0, 0.6, 6.6]))
    logits = predict(net, data.validation(), SIDE, NORMALIZATION)
    assert probe is not None and weighted is not None and not torch.equal(probe.weight, weighted.weight)
    assert weighted.right == int((logits.argmax(1) == data.labels[data.validation_index]).sum())


def test_the_layer_answers_as_the_regression_on_standardised_features_and_nothing_else_changes():
    torch.manual_seed(5)
    net, data = Net(), image_set()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    probe = fitted(net)
    logits = predict(net, data.validation(), SIDE, NORMALIZATION)
    assert probe.right / 12 == accuracy(logits, data.labels[data.validation_index]) > 0.9 and probe.images == 40
    assert probe.penalty in linear_probe.PENALTIES
    assert {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])} == {
        "fc.weight",
        "fc.bias",
    }
    assert net.training and not net.fc._forward_pre_hooks


def test_the_penalty_is_the_one_with_the_lowest_validation_loss():
    torch.manual_seed(5)
    net, data = Net(), image_set()
    probe = fitted(net)
    net.eval()
    shown = [
        torch.relu(net.bn(net.conv(views.to_float(data.images[index], *([0.5] * 3, [0.25] * 3)))))
        .mean((2, 3))
        .double()
        .detach()
        for index in (data.train_index, data.validation_index)
    ]
    mean, spread = shown[0].mean(0), shown[0].std(0, correction=0)
    features, held = ((value - mean) / spread for value in shown)
    fits = regress(features, data.labels[data.train_index], CLASSES, linear_probe.PENALTIES)
    losses = [
        float(nn.functional.cross_entropy(held @ weight.T + bias, data.labels[data.validation_index]))
        for weight, bias in fits
    ]
    assert probe.penalty == linear_probe.PENALTIES[losses.index(min(losses))]


def test_unlabelled_images_are_left_out():
    net, data = Net(), image_set()
    data.labels[data.train_index[::4]] = -1
    probe = fit_probe(net, "fc", data, NORMALIZATION, seed=0, threads=1)
    assert probe is not None and probe.images == 30


def test_many_images_are_drawn_by_class(monkeypatch):
    monkeypatch.setattr(linear_probe, "MOST_IMAGES", 30)
    assert fitted(Net()).images == 30


def test_a_network_behind_an_adapter_learns_the_outputs_of_the_datas_classes():
    class Wide(Net):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 5)

    torch.manual_seed(5)
    net = InputAdapter(Wide(), size=12, bgr=True, order=(4, 0, 2))
    data = image_set()
    probe = fitted(net)
    logits = predict(net, data.validation(), SIDE, NORMALIZATION)
    assert logits.shape[1] == CLASSES
    assert probe.right / 12 == accuracy(logits, data.labels[data.validation_index]) > 0.9


@pytest.mark.parametrize("last", ["conv", "tokens"])
def test_a_last_layer_that_is_no_linear_over_a_vector_stays_fresh(last):
    class Tokens(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x).flatten(2).transpose(1, 2)).mean(1)

    net = Net() if last == "conv" else Tokens()
    before = state_of(net)
    assert fitted(net, "conv" if last == "conv" else "fc") is None and same(before, state_of(net))


# --- in a training


def start(folder, **changes):
    folder.mkdir(exist_ok=True)
    student, method = student_and_method()
    probe = fitted(student)
    begin = state_of(student)
    result = fit(folder, student, method, config=settings(**changes), start_may_ship=True)
    return probe, begin, student, result


def test_keep_best_ships_the_probe_where_fine_tuning_lost(tmp_path):
    probe, begin, student, result = start(tmp_path, keep="best", lr=30.0)
    assert result.shipped_epoch == 0 and same(begin, state_of(student)) and probe.right == 12
    assert max(row["top1_validation"] for row in result.history) < 1.0


def test_keep_last_ships_the_last_epoch_and_a_warning_names_the_floor(tmp_path):
    probe, _, student, result = start(tmp_path, lr=30.0)
    assert result.shipped_epoch == 3
    checks = check_training(student, image_set(), NORMALIZATION, settings(), result.steps, probe)
    assert checks.probe_right == 12 > checks.right and checks.probe_top1 == 1.0
    warning = training_warnings.of_training("student", checks)[0]
    assert warning.affects_verdict and "below the 100.0 % that a last layer alone reaches" in str(warning)
    (line,) = training_warnings.floor("student", checks)
    assert line.endswith("a last layer alone, on the pretrained features, reaches 100.0 %")


def test_a_student_at_its_probe_is_not_warned_about():
    checks = TrainingChecks(12, 11, 9, "recomputed", probe_right=11, probe_images=40, probe_penalty=0.1)
    assert not training_warnings.of_training("student", checks)
    assert not training_warnings.floor("student", TrainingChecks(12, 11, 9, "recomputed"))


@pytest.mark.parametrize("after", [1, 4])
def test_an_interrupted_training_still_ships_its_start(tmp_path, after):
    (tmp_path / "parts").mkdir()
    _, begin, _, _ = start(tmp_path / "whole", keep="best", lr=30.0)
    config = settings(keep="best", lr=30.0)
    student, method = student_and_method()
    fitted(student)
    stop = RecordingProgress(after, press_ctrl_c)
    with pytest.raises(Interrupted):
        fit(tmp_path / "parts", student, method, config=config, start_may_ship=True, progress=stop)
    student, method = student_and_method()
    result = fit(tmp_path / "parts", student, method, config=config, start_may_ship=True)
    assert result.shipped_epoch == 0 and same(begin, state_of(student))
