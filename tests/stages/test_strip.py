"""What deploys is the trained main head bit for bit, and nothing of the method."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from compress import models
from compress.core.errors import StageError
from compress.methods import build_method
from compress.models.count import macs, params
from compress.recipe.schema import Catkd, Distill
from compress.stages import strip
from compress.training import build
from compress.training.evaluation import predict

pytestmark = pytest.mark.slow


def test_the_students_tensors_are_those_of_training_bit_for_bit(distilled, stripped):
    combined, shipped = load_file(distilled.combined.path), load_file(stripped.trained.weights.path)
    expected = {name.removeprefix("student."): value for name, value in combined.items() if name.startswith("student.")}
    assert set(shipped) == set(expected) == set(models.build("resnet8", classes=4).state_dict())
    assert all(torch.equal(shipped[name], expected[name]) for name in shipped)


def test_what_is_dropped_is_listed_and_the_counts_are_a_fresh_networks(stripped):
    parts = {
        "0": ("bias", "weight"),
        "2": ("bias", "num_batches_tracked", "running_mean", "running_var", "weight"),
        "4": ("bias", "weight"),
    }
    assert stripped.dropped == tuple(f"auxiliary.{number}.{name}" for number, names in parts.items() for name in names)
    fresh = models.build("resnet8", classes=4)
    assert (stripped.trained.params, stripped.trained.macs) == (params(fresh), macs(fresh, 16))
    assert not [name for name in load_file(stripped.trained.weights.path) if "auxiliary" in name or "method" in name]


def test_predictions_and_accuracy_are_those_of_the_file(stripped, training, network):
    data = build.load_images(training, "cpu")
    model = build.load_network(network, stripped.trained.weights, "cpu")
    answers = predict(model, data.images[data.validation_index], 16, network.normalization).argmax(dim=1)
    recorded = np.load(stripped.predictions.path)
    assert recorded.dtype == np.int64 and recorded.tolist() == answers.tolist()
    assert stripped.trained.top1_validation == (answers == data.labels[data.validation_index]).double().mean()
    assert stripped.trained.origin == "distilled by dhkd" and stripped.trained.epochs == 4


def deploying(monkeypatch: pytest.MonkeyPatch, change) -> None:
    """The method ships what `change(method, student)` answers."""
    made = build.build_method

    def build_method(*arguments, **options):
        method = made(*arguments, **options)
        method.deployed = lambda student: change(method, student)
        return method

    monkeypatch.setattr(build, "build_method", build_method)


def run(work, network, teacher, distilled, training, dhkd):
    return strip.run_strip(dhkd, context=work, student=network, teacher=teacher, trained=distilled, data=training)


def test_a_planted_difference_of_one_bit_fails(work, network, trained_teacher, distilled, training, dhkd, monkeypatch):
    def change(method, student):
        other = models.build("resnet8", classes=4)
        other.load_state_dict(student.state_dict())
        with torch.no_grad():
            other.fc.bias[0] = torch.nextafter(other.fc.bias[0], torch.tensor(9.0))
        return other

    deploying(monkeypatch, change)
    with pytest.raises(
        StageError, match="strip: the stripped resnet8 does not answer bit for bit like the trained main head"
    ):
        run(work, network, trained_teacher, distilled, training, dhkd)


def test_a_method_that_ships_its_head_fails(work, network, trained_teacher, distilled, training, dhkd, monkeypatch):
    def change(method, student):
        student.auxiliary = method.auxiliary
        return student

    deploying(monkeypatch, change)
    with pytest.raises(
        StageError, match=r"does not fit ResNet: 8|does not fit ResNet: .* unexpected \(auxiliary.0.bias"
    ):
        run(work, network, trained_teacher, distilled, training, dhkd)


@pytest.mark.parametrize("method", ["catkd", "simkd"])
def test_another_form_is_held_to_a_limit_that_grows_with_the_logits(network, method):
    torch.manual_seed(0)
    model = models.build("resnet8", classes=4).eval()
    own = build.outline_of(network, model)
    config = Distill(method=method, catkd=Catkd(side=1))
    trained = build_method(config, student=own, teacher=own, train_labels=torch.zeros(4, dtype=torch.int64)).eval()
    images = torch.randint(0, 256, (8, 16, 16, 3), dtype=torch.uint8)
    for scale in (1.0, 1e4):
        with torch.no_grad():
            model.fc.weight.mul_(scale)  # CAT-KD's logits; SimKD's classifier is the teacher's
            if method == "simkd":
                trained.classifier.weight.mul_(scale)
        shipped = copy.deepcopy(trained.deployed(model))
        strip._prove(model, shipped, trained, network, images)
        assert strip.params(shipped) == strip.params(trained.deployed(model))
        with torch.no_grad():
            shipped.fc.weight[0] *= 1.1
        with pytest.raises(
            StageError,
            match=r"differ by .* from those of training; the limit is .*, 1e-05 times the largest logit above 1 \(",
        ):
            strip._prove(model, shipped, trained, network, images)


def test_another_number_of_parameters_fails(network, monkeypatch):
    model = models.build("resnet8", classes=4).eval()
    monkeypatch.setattr(strip, "params", lambda module: 7)
    with pytest.raises(StageError, match="has 7 parameters, it should have 77,652"):
        strip._prove(model, model, plain(network), network, torch.zeros(1, 16, 16, 3, dtype=torch.uint8))


def test_keys_that_remain_fail(network, monkeypatch):
    model = models.build("resnet8", classes=4).eval()
    other = models.build("resnet8", classes=4).eval()
    other.load_state_dict(model.state_dict())
    other.register_buffer("auxiliary", torch.zeros(3))
    with pytest.raises(StageError, match="keys of the method remain in the student: auxiliary"):
        strip._prove(model, other, plain(network), network, torch.zeros(1, 16, 16, 3, dtype=torch.uint8))


def plain(network):
    return build_method(
        Distill(method="none"),
        student=build.outline_of(network),
        teacher=None,
        train_labels=torch.zeros(4, dtype=torch.int64),
    )
