"""The choice of a method by trials: coverage of its intervals, Holm's correction, ties to the simplest."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from compress.verdict import method_choice
from compress.verdict.method_choice import MethodChoice, choose, difference, seed_spread


def answers(accuracies: list[float], seeds: int, images: int, spread: float, seed: int) -> NDArray[np.bool_]:
    """Return bool (methods, seeds, images): images of unequal difficulty, trainings of unequal luck."""
    random = np.random.default_rng(seed)
    difficulty = random.beta(4, 0.6, images)
    luck = random.normal(0, spread, (len(accuracies), seeds, 1))
    gain = np.array(accuracies)[:, None, None]
    return random.random((len(accuracies), seeds, images)) < np.clip(difficulty + gain + luck, 0, 1)


def chosen(correct: NDArray[np.bool_], names: str = "abcde") -> MethodChoice:
    named = list(zip(names, correct, strict=False))
    return choose(named, folds=1, epochs=3, share=1.0, seconds=1.0)


@pytest.mark.parametrize(("methods", "seeds", "spread"), [(5, 3, 0.0), (5, 3, 0.015), (3, 3, 0.01), (5, 1, 0.0)])
def test_intervals_cover_over_seeds_and_images(methods: int, seeds: int, spread: float) -> None:
    runs, covered = 250, 0
    for run in range(runs):
        correct = answers([0.0] * methods, seeds, 400, spread, run)
        found = difference(correct[1], correct[0], seed_spread(correct))
        covered += found.low <= 0 <= found.high
    assert covered / runs >= 0.92  # 95 %; the standard error of 250 runs is 1.4 %


def test_a_single_seed_is_the_paired_comparison_of_the_images() -> None:
    one, other = np.ones((1, 100), bool), np.ones((1, 100), bool)
    one[0, :2], other[0, :8] = False, False
    found = difference(one, other, seed_spread(np.stack([one, other])))
    gaps = (one.astype(float) - other)[0]
    error = gaps.std(ddof=1) / 10
    assert found.points == pytest.approx(6.0)
    assert found.high - found.points == pytest.approx(100 * 1.98422 * error, rel=1e-4)  # t on 99 degrees


def test_equal_answers_show_nothing() -> None:
    right = np.ones((2, 50), bool)
    found = difference(right, right, seed_spread(np.stack([right, right])))
    assert (found.points, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_without_a_difference_the_simplest_is_taken() -> None:
    taken = [chosen(answers([0.0] * 5, 3, 600, 0.005, run)).method for run in range(100)]
    assert taken.count("a") >= 90  # at most 5 % of the runs are wrong


def test_a_clear_gain_is_taken_and_ties_go_to_the_simpler_of_the_better_methods() -> None:
    choice = chosen(answers([0.0, 0.0, 0.08, 0.08, 0.0], 3, 4000, 0.002, 1))
    assert choice.method == "c"  # d is as good, and listed behind it
    first, second, third = choice.trials[:3]
    assert first.gain is None and not first.chosen and second.p_holm is not None and second.p_holm > 0.05
    assert third.gain is not None and third.gain.low > 0 and third.p_holm is not None and third.p_holm < 0.05
    assert choice.reason.startswith(f"c is {third.gain.points:.1f} [") and "points better than a" in choice.reason


def test_a_method_that_is_significantly_worse_is_never_taken() -> None:
    choice = chosen(answers([0.0, -0.2], 3, 2000, 0.002, 2))
    assert choice.method == "a" and choice.reason.startswith("a is taken: no method is shown to be better")


def test_lines_and_content_say_the_same() -> None:
    choice = chosen(answers([0.0, 0.05], 3, 500, 0.0, 3))
    row = method_choice.content(choice)["trials"][1]
    assert f"{row['gain_points']:+.2f} [{row['gain_ci95'][0]:.2f}" in method_choice.line(choice.trials[1])
    assert math.isclose(row["top1_validation"], sum(row["top1_by_seed"]) / 3)
