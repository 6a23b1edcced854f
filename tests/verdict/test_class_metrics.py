"""Balanced accuracy and macro-F1: values by hand, intervals that cover what they claim."""

from __future__ import annotations

import numpy as np
import pytest

from compress.verdict import class_metrics as metrics
from compress.verdict.class_metrics import class_metrics, f1_of_classes

# Images of each class, recall of each class.
SETTINGS = {
    "few images": ([5, 5], [0.9, 0.9]),
    "a rare class": ([95, 5], [0.97, 0.8]),
    "photos": ([34] * 6, [0.9, 0.8, 0.7, 0.5, 0.3, 0.02]),
    "nearly all right": ([20] * 12, [0.97] * 12),
    "unequal": ([380, 20, 20], [0.99, 0.7, 0.9]),
    "many small classes": ([5] * 30, [0.8] * 30),
}


def test_both_are_the_means_over_the_classes():
    labels = np.repeat([0, 1, 2], [6, 3, 1])
    answers = np.array([0, 0, 0, 0, 0, 1, 1, 1, 0, 0])
    found = class_metrics(labels, answers, 3, seed=0)
    assert found.balanced_accuracy == pytest.approx((5 / 6 + 2 / 3 + 0) / 3)
    f1 = [10 / 13, 4 / 6, 0]  # 2 right / (images + answers): 10 / (6 + 7), 4 / (3 + 3), 0 / (1 + 0)
    assert f1_of_classes(labels, answers, 3).tolist() == pytest.approx(f1)
    assert found.macro_f1 == pytest.approx(sum(f1) / 3)
    low, high = found.balanced_accuracy_ci95
    assert 0 < low < found.balanced_accuracy < high <= 1


def test_a_student_that_always_names_one_class_is_half_right_of_two():
    labels = np.repeat([0, 1], [95, 5])
    found = class_metrics(labels, np.zeros(100, np.int64), 2, seed=0)
    assert found.balanced_accuracy == 0.5 and found.balanced_accuracy_ci95[1] < 0.9
    assert found.macro_f1 == pytest.approx(190 / 195 / 2)


def test_a_class_without_test_images_does_not_count():
    labels = np.repeat([0, 2], [10, 10])
    two = class_metrics(labels // 2, labels // 2, 2, seed=0)
    assert class_metrics(labels, labels, 3, seed=0).balanced_accuracy == two.balanced_accuracy == 1.0


def test_the_same_seed_gives_the_same_interval():
    labels = np.arange(60) % 6
    answers = np.where(np.arange(60) % 7, labels, 0)
    assert class_metrics(labels, answers, 6, 3) == class_metrics(labels, answers, 6, 3)


def test_the_intervals_stay_in_0_to_1_and_hold_the_value():
    labels = np.arange(40) % 4
    for answers in (labels, (labels + 1) % 4):
        found = class_metrics(labels, answers, 4, seed=0)
        for value, (low, high) in (
            (found.balanced_accuracy, found.balanced_accuracy_ci95),
            (found.macro_f1, found.macro_f1_ci95),
        ):
            assert 0 <= low <= value <= high <= 1 and low < high


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_the_intervals_cover_what_they_claim(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(metrics, "RESAMPLES", 600)
    counts, recall = (np.array(values) for values in SETTINGS[name])
    classes, runs, random = len(counts), 400, np.random.default_rng(1)
    odds = np.zeros((classes, classes))  # what is named, given the class
    for index in range(classes):
        odds[index, np.arange(classes) != index] = (1 - recall[index]) * random.dirichlet(np.full(classes - 1, 0.5))
        odds[index, index] = recall[index]
    true_f1 = np.mean(2 * counts * recall / (counts + counts @ odds))
    covered = np.zeros(2)
    for run in range(runs):
        answers = [random.choice(classes, n, p=row) for n, row in zip(counts, odds, strict=True)]
        found = class_metrics(np.repeat(np.arange(classes), counts), np.concatenate(answers), classes, run)
        pairs = ((recall.mean(), found.balanced_accuracy_ci95), (true_f1, found.macro_f1_ci95))
        covered += [low - 1e-9 <= true <= high + 1e-9 for true, (low, high) in pairs]
    # 95 % less three standard errors of 400 runs.
    assert (covered / runs >= 0.917).all(), covered / runs
