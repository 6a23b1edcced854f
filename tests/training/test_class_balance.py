"""Unequal classes: their weights in the cross-entropy, and sampling that shows all equally often."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compress.core.errors import Interrupted
from compress.core.records.base import File
from compress.core.records.training import Network, Normalization, Trained
from compress.data.augment import views
from compress.data.streaming.batches import ShardMixing
from compress.methods import build_method
from compress.recipe.defaults import resolved_train
from compress.recipe.schema import Distill, Train
from compress.training import batch_norm, schedule, shipped_weights
from compress.training.class_balance import (
    class_counts,
    class_weights,
    describe_sampling,
    describe_weights,
    probe_weights,
)
from compress.training.evaluation import ImageSet, accuracy, score
from compress.training.step import Step
from compress.verdict import teacher_choice
from compress.verdict.class_metrics import class_metrics
from tests.support.tiny_training import (
    SHAPE,
    SIDE,
    VALIDATION,
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


def test_the_defaults_spelt_out_are_the_defaults():
    one, default = (
        resolved_train(train, mobile=False, pretrained=False, seed=0)
        for train in (Train(class_weights="none", sampling="all"), Train())
    )
    assert one == default


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


# --- balanced sampling

SAMPLING = {"sampling": "balanced"}


def drawn(epoch: int, seed: int = 7) -> tuple[ImageSet, torch.Tensor]:
    data = unequal()
    return data, schedule.order(data.train_index, seed, epoch, None, data.labels[data.train_index])


def test_an_epoch_shows_every_class_and_the_images_of_a_class_equally_often():
    seen = torch.zeros(52, dtype=torch.int64)
    for epoch in range(1, 41):
        data, order = drawn(epoch)
        by_class = torch.bincount(data.labels[order], minlength=3)
        assert len(order) == 40 and sorted(by_class.tolist()) == [13, 13, 14]
        times = torch.bincount(order, minlength=52)
        for number in range(3):
            own = times[(data.labels == number) & (torch.arange(52) >= VALIDATION)]
            assert own.max() - own.min() <= 1
        seen += times
    assert not seen[:VALIDATION].any() and seen[VALIDATION:].all()
    totals = torch.stack([seen[VALIDATION:][data.labels[VALIDATION:] == number].sum() for number in range(3)])
    assert totals.sum() == 1600 and totals.max() - totals.min() < 40  # which class gets one more is drawn


def test_draws_are_a_function_of_seed_and_epoch():
    orders = [drawn(epoch, seed)[1] for epoch, seed in ((1, 7), (1, 7), (2, 7), (1, 8))]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2]) and not torch.equal(orders[0], orders[3])


def test_unlabelled_images_come_once_and_the_others_are_balanced():
    data = unequal()
    data.labels[VALIDATION : VALIDATION + 10] = -1
    order = schedule.order(data.train_index, 0, 1, None, data.labels[data.train_index])
    assert torch.bincount(order, minlength=52)[VALIDATION : VALIDATION + 10].tolist() == [1] * 10
    labels = data.labels[order]
    assert len(order) == 40 and torch.bincount(labels[labels >= 0]).tolist() == [10, 10, 10]


def test_shards_are_mixed_as_without_it():
    data = unequal()
    shards = ShardMixing(torch.arange(52) // 13, 1)
    order = schedule.order(data.train_index, 0, 1, shards, data.labels[data.train_index])
    plain = schedule.order(data.train_index, 0, 1, None, data.labels[data.train_index])
    assert torch.equal(order.sort().values, plain.sort().values)
    assert len(torch.unique_consecutive(shards.shard_of[order])) == len(torch.unique(shards.shard_of[order]))


def test_occurrences_count_what_stands_before():
    assert schedule.occurrences(torch.tensor([4, 2, 4, 4, 2, 0])).tolist() == [0, 0, 1, 2, 1, 0]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What steps see: (image, view), in order."""
    found: list[tuple[int, int]] = []
    call = Step.__call__

    def record(self, batch, *, trace=False):
        found.extend(zip(batch.index.tolist(), batch.view.tolist(), strict=True))
        return call(self, batch, trace=trace)

    monkeypatch.setattr(Step, "__call__", record)
    return found


def balanced(folder, progress=None, **changes):
    folder.mkdir(exist_ok=True)
    student, method = student_and_method()
    result = fit(folder, student, method, data=unequal(), config=settings(**SAMPLING, **changes), progress=progress)
    return state_of(student, method), result


def test_an_image_that_comes_again_comes_in_another_view(tmp_path, shown):
    balanced(tmp_path, epochs=2)
    assert len(shown) == 80
    for epoch in (shown[:40], shown[40:]):
        rarest = [view for image, view in epoch if image >= 50]
        assert len(rarest) in (13, 14) and len(set(rarest)) > 7  # of 18 views, drawn with repetition
    assert [view for _, view in shown[:40]] != [view for _, view in shown[40:]]


def test_a_limit_on_views_is_kept_and_used_up(tmp_path, shown):
    balanced(tmp_path, epochs=1, views=4)
    own = {image: {view for other, view in shown if other == image} for image, _ in shown}
    assert max(map(len, own.values())) == 4 and all(len(own[image]) == 4 for image in (50, 51))


@pytest.mark.parametrize("after", [1, 4])
def test_an_interrupted_balanced_training_ends_with_the_same_bits(tmp_path, after):
    whole, result = balanced(tmp_path / "whole", ema=0.9)
    again, _ = balanced(tmp_path / "again", ema=0.9)
    with pytest.raises(Interrupted):
        balanced(tmp_path / "parts", RecordingProgress(after, press_ctrl_c), ema=0.9)
    resumed, rest = balanced(tmp_path / "parts", ema=0.9)
    assert same(whole, again) and same(whole, resumed)
    assert [row["ce"] for row in result.history] == [row["ce"] for row in rest.history]
    plain, method = student_and_method()
    fit(tmp_path / "whole", plain, method, data=unequal(), config=settings(ema=0.9), progress=RecordingProgress())
    assert not same(whole, state_of(plain, method))


def test_statistics_are_recomputed_from_balanced_draws(tmp_path, monkeypatch):
    kept: list[torch.Tensor] = []
    recompute = batch_norm.recompute
    monkeypatch.setattr(
        batch_norm,
        "recompute",
        lambda network, pixels, *rest: recompute(network, (kept.append(one) or one for one in pixels), *rest),
    )
    balanced(tmp_path, epochs=1, batch_norm="recomputed")
    data, order = drawn(0)
    views_of = views.views_of(order, 0, 7, "crop_flip", None, SIDE)
    again = schedule.occurrences(order)
    for number in range(1, int(again.max()) + 1):
        where = again == number
        views_of[where] = views.views_of(order[where], 2 * number, 7, "crop_flip", None, SIDE)
    expected = views.apply_views(data.images, order, views_of, "crop_flip", SIDE)
    assert torch.equal(torch.cat(kept), expected)


def test_weights_by_name_have_a_mean_of_one_over_balanced_draws_and_the_probe_sees_both():
    config = settings(class_weights={"c": 4.0}, **SAMPLING)
    assert class_weights(config, unequal(), NAMES).tolist() == pytest.approx([0.5, 0.5, 2.0])
    often = [40 / (3 * 28), 40 / (3 * 10), 40 / (3 * 2)]
    assert probe_weights(settings(**SAMPLING), unequal(), NAMES).tolist() == pytest.approx(often)
    both = [weight * times for weight, times in zip([0.5, 0.5, 2.0], often, strict=True)]
    assert probe_weights(config, unequal(), NAMES).tolist() == pytest.approx(both)
    assert probe_weights(settings(class_weights="balanced"), unequal(), NAMES).tolist() == pytest.approx(often)
    assert probe_weights(settings(), unequal(), NAMES) is None


def test_the_sampling_is_described():
    counts = class_counts(unequal(), 4)
    assert describe_sampling(counts, (*NAMES, "d")) == (
        "an epoch shows each class 13 times, the 2 images of c 6.67 times each"
    )


# --- the metric that training goes by


@pytest.mark.parametrize("metric", ["balanced_accuracy", "macro_f1"])
def test_a_metric_is_the_one_of_the_report(metric):
    generator = torch.Generator().manual_seed(2)
    logits, labels = torch.randn(200, 5, generator=generator), torch.randint(0, 4, (200,), generator=generator)
    expected = class_metrics(labels.numpy(), logits.argmax(1).numpy(), 5, 0).row()[metric]
    assert score(metric, logits, labels) == pytest.approx(expected, abs=1e-12)
    assert score(None, logits, labels) == score("top1", logits, labels) == accuracy(logits, labels)


def with_scores(monkeypatch: pytest.MonkeyPatch, top1: list[float], other: list[float]) -> None:
    values, others = iter(top1), iter(other)
    monkeypatch.setattr(shipped_weights, "accuracy", lambda *_: next(values))
    monkeypatch.setattr(shipped_weights, "score", lambda *_: next(others))


def test_keep_best_and_patience_go_by_the_metric(tmp_path, monkeypatch):
    with_scores(monkeypatch, [0.5, 0.6, 0.7, 0.8], [0.4, 0.3, 0.2, 0.1])
    student, method = student_and_method()
    config = settings(epochs=6, metric="macro_f1", keep="best", patience=2)
    result = fit(tmp_path, student, method, config=config)
    assert result.shipped_epoch == 1 and len(result.history) == 3
    assert [row["macro_f1_validation"] for row in result.history] == [0.4, 0.3, 0.2]
    assert [row["top1_validation"] for row in result.history] == [0.5, 0.6, 0.7]


def test_without_a_metric_the_history_has_top1_alone(tmp_path):
    student, method = student_and_method()
    rows = fit(tmp_path, student, method, config=settings(epochs=1, keep="best")).history
    assert [name for name in rows[0] if name.endswith("_validation")] == ["top1_validation"]


def test_the_teacher_is_chosen_by_the_metric():
    normalization = Normalization((0.5,) * 3, (0.25,) * 3)
    one, other = (
        Trained(Network(name, None, 3, 8, normalization), File(Path(name), name, 1), top1, 1, macs, 1, 1.0, score=found)
        for name, top1, macs, found in (("first", 0.9, 5, 0.6), ("second", 0.8, 9, 0.7))
    )
    chosen = teacher_choice.select([one, other], metric="macro_f1")
    assert chosen.index == 1 and chosen.reason == (
        "second has the best macro-F1 on validation: 70.00 %, 10.00 points ahead of first (60.00 %)"
    )
    assert [row["score"] for row in teacher_choice.rows([one, other], chosen)] == [0.6, 0.7]
    tie = teacher_choice.select([replace(one, score=0.7), other], metric="balanced_accuracy")
    assert tie.index == 0 and "first ties with second in balanced accuracy on validation" in tie.reason
    plain = teacher_choice.select([replace(one, score=None), replace(other, score=None)])
    assert plain.index == 0 and "best validation accuracy: 90.00 %" in plain.reason
