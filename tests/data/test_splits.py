"""Splits by purpose: stratified, seeded, disjoint."""

from __future__ import annotations

import numpy as np
import pytest

from compress.core.errors import UsageError
from compress.data import splits

LABELS = np.repeat(np.arange(4), [40, 30, 20, 10])[np.random.default_rng(1).permutation(100)]


def test_shuffled_is_pinned_for_all_numpy_versions() -> None:
    # recorded once: the same seed must choose the same images for good, or old runs cannot be repeated
    assert splits.shuffled(8, 0).tolist() == [3, 2, 1, 6, 0, 7, 4, 5]
    assert sorted(splits.shuffled(1000, 5).tolist()) == list(range(1000))
    assert splits.shuffled(1000, 5).tolist() != splits.shuffled(1000, 5, stream=1).tolist()


@pytest.mark.parametrize(("validation", "counts"), [(0.1, [4, 3, 2, 1]), (20, [8, 6, 4, 2]), (0.25, [10, 8, 5, 2])])
def test_carve_is_stratified_and_disjoint(validation: float, counts: list[int]) -> None:
    train, held_out = splits.carve(LABELS, validation, seed=0)
    assert train.dtype == held_out.dtype == np.int64
    assert np.array_equal(np.sort(np.concatenate([train, held_out])), np.arange(100))
    assert np.all(np.diff(train) > 0) and np.all(np.diff(held_out) > 0)
    assert np.bincount(LABELS[held_out]).tolist() == counts


def test_carve_repeats_for_a_seed_and_differs_between_seeds() -> None:
    assert np.array_equal(splits.carve(LABELS, 0.2, 3)[1], splits.carve(LABELS, 0.2, 3)[1])
    assert not np.array_equal(splits.carve(LABELS, 0.2, 3)[1], splits.carve(LABELS, 0.2, 4)[1])


def test_every_class_is_in_both_parts_however_rare() -> None:
    labels = np.array([0] * 500 + [1] * 2)
    train, held_out = splits.carve(labels, 0.01, 0)
    assert set(labels[train]) == set(labels[held_out]) == {0, 1}
    assert len(held_out) == 5


@pytest.mark.parametrize(
    ("labels", "validation", "sentence"),
    [
        ([0, 0, 0, 1], 0.5, "class 1 has a single training image"),
        ([0, 0, 1, 1], 1, "choose between 2 and 2 images"),
        ([0, 0, 1, 1], 3, "choose between 2 and 2 images"),
        ([], 0.1, "no training images"),
    ],
)
def test_carve_refuses_impossible_splits(labels: list[int], validation: float, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        splits.carve(np.array(labels, dtype=np.int64), validation, 0)


def test_a_class_that_cannot_be_split_is_named() -> None:
    with pytest.raises(UsageError, match="class 'cat' has a single training image"):
        splits.carve(np.array([0, 0, 2]), 0.5, 0, ("ant", "bee", "cat"))


def test_calibration_never_touches_validation() -> None:
    train, held_out = splits.carve(LABELS, 0.2, 0)
    chosen = splits.calibration_index(LABELS, train, 40, 0)
    assert set(chosen) <= set(train) and not set(chosen) & set(held_out)
    assert np.bincount(LABELS[chosen]).tolist() == [16, 12, 8, 4]
    assert np.array_equal(splits.calibration_index(LABELS, train, 512, 0), train)


def test_stratified_subsets() -> None:
    assert np.bincount(LABELS[splits.stratified(LABELS, 50, 0)]).tolist() == [20, 15, 10, 5]
    assert np.array_equal(splits.stratified(LABELS, 1000, 0), np.arange(100))
    assert len(splits.stratified(LABELS, 3, 0)) == 3


@pytest.mark.parametrize("seed", range(20))
def test_allocate_meets_total_and_bounds(seed: int) -> None:
    random = np.random.default_rng(seed)
    sizes = random.integers(2, 60, size=9)
    total = int(random.integers(9, sizes.sum() - 9 + 1))
    given = splits.allocate(sizes, total, least=1, leave=1)
    assert given.sum() == total and given.min() >= 1 and (sizes - given).min() >= 1


def test_unlabelled_images_are_in_no_part_and_change_none() -> None:
    labels = np.arange(60) % 3
    some = np.insert(labels, [0, 20, 60], -1)
    plain, mixed = (splits.split_labelled(each, 0.2, 7, None) for each in (labels, some))
    known = np.flatnonzero(some >= 0)
    assert np.array_equal(mixed[0], some)
    for one, other in zip(plain[1:], mixed[1:], strict=True):
        assert np.array_equal(known[one], other)


def test_hidden_labels_are_those_of_training_images_alone() -> None:
    labels = np.arange(60) % 3
    _, train, validation = splits.split_labelled(labels, 0.2, 7, None)
    read, kept, same = splits.split_labelled(labels, 0.2, 7, 12)
    assert np.array_equal(validation, same) and np.bincount(labels[kept]).tolist() == [4, 4, 4]
    assert set(kept) < set(train) and set(np.flatnonzero(read < 0)) == set(train) - set(kept)
    assert np.array_equal(read[kept], labels[kept]) and (labels >= 0).all()
    assert not np.array_equal(kept, splits.split_labelled(labels, 0.2, 8, 12)[1])


def test_too_few_labels_name_the_class_without_one() -> None:
    with pytest.raises(UsageError, match=r"data\.labelled: with 2 labels, class 'c' has none; choose more"):
        splits.split_labelled(np.arange(60) % 3, 0.2, 0, 2, "abc")


@pytest.mark.parametrize("of", [2, 5])
def test_folds_hold_every_image_once_and_the_classes_in_proportion(of: int) -> None:
    parts = [splits.fold(LABELS, number, of, seed=3) for number in range(of)]
    held_out = [part for _, part in parts]
    assert np.array_equal(np.sort(np.concatenate(held_out)), np.arange(100))
    for train, part in parts:
        assert np.array_equal(np.sort(np.concatenate([train, part])), np.arange(100)) and np.all(np.diff(part) > 0)
        assert np.abs(np.bincount(LABELS[part], minlength=4) - np.array([40, 30, 20, 10]) / of).max() <= 1
    assert not np.array_equal(splits.fold(LABELS, 0, of, seed=4)[1], held_out[0])


def test_folds_keep_groups_together_and_leave_every_class_to_train_on() -> None:
    labels = np.repeat([0, 1], 60)
    groups = np.array([f"{label}-{number // 7}" for label in (0, 1) for number in range(60)])
    parts = [splits.fold(labels, number, 5, 0, groups) for number in range(5)]
    assert np.array_equal(np.sort(np.concatenate([part for _, part in parts])), np.arange(120))
    for train, part in parts:
        assert not set(groups[train]) & set(groups[part])
        assert set(labels[train]) == {0, 1} and 12 <= len(part) <= 36


def test_a_part_takes_the_place_of_the_validation_share() -> None:
    labels = np.where(np.arange(100) % 10 == 0, -1, LABELS)
    read, train, held_out = splits.split_labelled(labels, 0.1, 0, None, part=(1, 5))
    assert (
        np.array_equal(np.sort(np.concatenate([train, held_out])), np.flatnonzero(labels >= 0)) and len(held_out) == 18
    )
    assert np.array_equal(read, labels)
