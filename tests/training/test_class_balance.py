"""Unequal classes: their weights in the cross-entropy."""

from __future__ import annotations

import unicodedata

import pytest
import torch

from compress.recipe.defaults import resolved_train
from compress.recipe.schema import Distill, Train
from compress.training.class_balance import class_weights, describe_weights
from compress.training.evaluation import ImageSet
from tests.support.tiny_training import (
    SHAPE,
    VALIDATION,
    Net,
    build_method,
    fit,
    image_set,
    same,
    settings,
    state_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("a", "Käfer", "c")


def unequal() -> ImageSet:
    """Return 40 images to train on: 28 of the first class, 10 of the second, 2 of the last."""
    data = image_set()
    labels = data.labels.clone()
    labels[VALIDATION:] = torch.tensor([0] * 28 + [1] * 10 + [2] * 2)
    return ImageSet(data.images, labels, data.train_index, data.validation_index, data.augment, data.image_size)


def weights_of(setting: object, data: ImageSet | None = None) -> list[float] | None:
    found = class_weights(settings(class_weights=setting), data or unequal(), NAMES)
    return None if found is None else found.tolist()


def test_balanced_weights_are_images_over_classes_times_those_of_the_class():
    assert weights_of("balanced") == pytest.approx([40 / (3 * 28), 40 / (3 * 10), 40 / (3 * 2)])
    assert weights_of(None) is None and weights_of("none") is None


def test_validation_and_unlabelled_images_do_not_count():
    data = unequal()
    data.labels[VALIDATION + 20 : VALIDATION + 28] = -1
    data.labels[:VALIDATION] = 2
    assert weights_of("balanced", data) == pytest.approx([32 / (3 * 20), 32 / (3 * 10), 32 / (3 * 2)])
    assert weights_of("balanced", data.with_unlabelled()) == weights_of("balanced", data)


def test_a_class_without_images_weighs_nothing_and_the_mean_stays_one():
    data = unequal()
    data.labels[data.labels == 2] = 1
    assert weights_of("balanced", data) == pytest.approx([40 / (2 * 28), 40 / (2 * 12), 0.0])


def test_weights_by_name_are_scaled_to_a_mean_of_one_over_the_images():
    name = unicodedata.normalize("NFD", "Käfer")
    found = weights_of({name: 3.0})
    assert found is not None and found[1] / found[0] == pytest.approx(3) and found[0] == found[2]
    assert 28 * found[0] + 10 * found[1] + 2 * found[2] == pytest.approx(40)
    assert describe_weights(torch.tensor(found), NAMES) == (
        "classes weigh from 0.667 (a) to 2 (Käfer) in the cross-entropy"
    )


def test_none_is_the_default_and_no_part_of_a_key():
    assert resolved_train(Train(class_weights="none"), mobile=False, pretrained=False, seed=0) == resolved_train(
        Train(), mobile=False, pretrained=False, seed=0
    )


def trained(folder, weights):
    torch.manual_seed(5)
    student = Net()
    method = build_method(
        Distill(method=("none",)),
        student=SHAPE,
        teacher=None,
        train_labels=unequal().labels,
        class_weights=None if weights is None else torch.tensor(weights),
    )
    result = fit(folder, student, method, data=unequal(), config=settings(epochs=4))
    return student, result


def test_a_weighted_training_is_deterministic_and_weights_of_one_change_nothing_else(tmp_path):
    weights = weights_of("balanced")
    folders = [tmp_path / str(number) for number in range(4)]
    for folder in folders:
        folder.mkdir()
    one, again = trained(folders[0], weights), trained(folders[1], weights)
    assert same(state_of(one[0]), state_of(again[0])) and one[1].history[-1]["ce"] == again[1].history[-1]["ce"]
    plain, ones = trained(folders[2], None), trained(folders[3], [1.0, 1.0, 1.0])
    for key, value in plain[0].state_dict().items():
        torch.testing.assert_close(ones[0].state_dict()[key], value, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain[0].fc.weight, one[0].fc.weight, atol=1e-2)
