"""Simulated coverage of the intervals for grouped test images."""

from __future__ import annotations

import numpy as np
import pytest

from compress.verdict import clusters

pytestmark = pytest.mark.slow
ROUNDS = 1500
# 95 % less three standard errors of the simulation and less what Wilson's interval itself gives away.
LEAST_COVERAGE, MOST_ON_ONE_SIDE = 0.925, 0.045


def shares(rng: np.random.Generator, mean: float, alike: float, count: int) -> np.ndarray:
    """Return each group's own probability: a beta distribution with the given intraclass correlation."""
    if alike == 0:
        return np.full(count, mean)
    spread = (1 - alike) / alike
    return rng.beta(mean * spread, (1 - mean) * spread, count)


def draw_groups(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Return the group of each image; sizes differ threefold."""
    return np.repeat(np.arange(count), rng.integers(size // 2, size * 3 // 2 + 1, count))


@pytest.mark.parametrize("alike", [0.0, 0.2, 0.9])
@pytest.mark.parametrize("count", [clusters.FEWEST_GROUPS, 20, 50])
@pytest.mark.parametrize("mean", [0.8, 0.95])
def test_an_accuracys_interval_covers_it(count: int, alike: float, mean: float) -> None:
    rng = np.random.default_rng(count)
    above = below = 0
    for _ in range(ROUNDS):
        groups = draw_groups(rng, count, 20)
        correct = rng.random(len(groups)) < shares(rng, mean, alike, count)[groups]
        low, high = clusters.accuracy_interval(correct, groups)
        above, below = above + (low > mean), below + (high < mean)
    assert 1 - (above + below) / ROUNDS >= LEAST_COVERAGE
    assert above / ROUNDS <= MOST_ON_ONE_SIDE


@pytest.mark.parametrize("alike", [0.0, 0.2, 0.9])
@pytest.mark.parametrize("count", [clusters.FEWEST_GROUPS, 20, 50])
@pytest.mark.parametrize("drop", [0.0, 0.05])
def test_a_drops_interval_covers_it(count: int, alike: float, drop: float) -> None:
    rng = np.random.default_rng(count)
    above = below = significant = 0
    for _ in range(ROUNDS):
        groups = draw_groups(rng, count, 20)
        flipped = rng.random(len(groups)) < shares(rng, 0.15, alike, count)[groups]
        lost = flipped & (rng.random(len(groups)) < shares(rng, 0.5 + drop / 0.3, alike, count)[groups])
        reference = (rng.random(len(groups)) < 0.8) & ~flipped | lost
        found = clusters.paired_drop(reference, reference & ~lost | (flipped & ~lost), groups)
        above, below = above + (found.high < 100 * drop), below + (found.low > 100 * drop)
        significant += found.p < 0.05
    assert 1 - (above + below) / ROUNDS >= LEAST_COVERAGE
    assert above / ROUNDS <= MOST_ON_ONE_SIDE  # the side on which a limit would be met wrongly
    assert drop or significant / ROUNDS <= 0.075


def test_ordinary_intervals_do_not_cover_grouped_images() -> None:
    """The reason for all this: Wilson's interval on all images of ten clips."""
    from compress.verdict.intervals import wilson

    rng, covered = np.random.default_rng(0), 0
    for _ in range(ROUNDS):
        groups = draw_groups(rng, 10, 20)
        correct = rng.random(len(groups)) < shares(rng, 0.8, 0.9, 10)[groups]
        low, high = wilson(int(correct.sum()), len(correct))
        covered += low <= 0.8 <= high
    assert covered / ROUNDS < 0.5
