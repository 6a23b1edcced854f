"""Chooses the distillation method by short trials: paired on the validation images, ties to the simplest.

Seeds and images are crossed: every method is trained with the same seeds and judged on the same images. The interval
of a difference counts both as random, as in studies of several readers of the same cases (Dorfman, Berbaum and Metz
1992; degrees of freedom after Hillis 2007). How much seeds vary is estimated over all methods together, because three
seeds of two methods say little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.core.plural import plural
from compress.verdict import student_t
from compress.verdict.intervals import holm

ALPHA = 0.05


@dataclass(frozen=True)
class Difference:
    """The difference of two methods in points, with its 95 % interval and two-sided p."""

    points: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class MethodTrial:
    """A method in its trials.

    Attributes:
        method: its name.
        top1_validation: mean over seeds, in [0, 1].
        top1_by_seed: one for each seed.
        gain: over the simplest method; None for that one.
        p_holm: p of `gain`, corrected for the number of methods; None for the simplest.
        chosen: whether the student is trained by it.
    """

    method: str
    top1_validation: float
    top1_by_seed: tuple[float, ...]
    gain: Difference | None
    p_holm: float | None
    chosen: bool


@dataclass(frozen=True)
class MethodChoice:
    """The trials of all methods, in the order of the recipe, and why one was chosen."""

    trials: tuple[MethodTrial, ...]
    reason: str
    images: int
    seeds: int
    folds: int
    epochs: int
    share: float
    seconds: float

    @property
    def method(self) -> str:
        """The chosen method."""
        return next(one.method for one in self.trials if one.chosen)


@dataclass(frozen=True)
class SeedSpread:
    """How much seeds move the methods against each other, over all methods.

    Attributes:
        mean_square: of method and seed, twice, as it enters the difference of two methods; 0 with a single seed.
        degrees: of freedom of that mean square; 0 with a single seed.
    """

    mean_square: float
    degrees: int


def seed_spread(correct: NDArray[np.bool_]) -> SeedSpread:
    """Return how much seeds move the methods, from bool (methods, seeds, images)."""
    methods, seeds, images = correct.shape
    degrees = (methods - 1) * (seeds - 1)
    if degrees == 0:
        return SeedSpread(0.0, 0)
    means = correct.mean(axis=2)
    rest = means - means.mean(axis=1, keepdims=True) - means.mean(axis=0) + means.mean()
    return SeedSpread(2 * images * float((rest**2).sum()) / degrees, degrees)


def difference(one: NDArray[np.bool_], other: NDArray[np.bool_], spread: SeedSpread) -> Difference:
    """Return by how much `one` is better than `other`.

    Args:
        one: whether each image is classified correctly, bool (seeds, images).
        other: the same of another method, with the same seeds and images.
        spread: of all methods; with a single seed the images alone vary.
    """
    gaps = one.astype(np.float64) - other
    seeds, images = gaps.shape
    mean = float(gaps.mean())
    # Mean squares of a two-way analysis of variance without replication.
    by_image, by_seed = gaps.mean(axis=0) - mean, gaps.mean(axis=1) - mean
    of_images = seeds * float(by_image @ by_image) / max(images - 1, 1)
    degrees = images - 1
    if seeds > 1:
        rest = gaps - mean - by_image - by_seed[:, None]
        of_images = max(of_images - float((rest**2).sum()) / max((seeds - 1) * (images - 1), 1), 0.0)
    total = of_images + spread.mean_square
    if spread.mean_square > 0:
        degrees = max(1, min(degrees, math.floor(spread.degrees * (total / spread.mean_square) ** 2)))
    error = math.sqrt(total / (seeds * images))
    if error == 0:
        return Difference(100 * mean, 100 * mean, 100 * mean, 1.0 if mean == 0 else 0.0)
    half = student_t.quantile(0.95, degrees) * error
    p = student_t.two_sided_p(mean / error, degrees)
    return Difference(100 * mean, 100 * (mean - half), 100 * (mean + half), p)


def choose(
    correct: Sequence[tuple[str, NDArray[np.bool_]]], *, folds: int, epochs: int, share: float, seconds: float
) -> MethodChoice:
    """Choose among methods that are listed from the simplest on.

    A method counts as better than the simplest if its gain is significant after Holm's correction. Without such a
    method the simplest is chosen. Otherwise it is the first of them than which the best one is not shown to be better.

    Args:
        correct: name of each method, and whether each image is classified correctly, bool (seeds, images).
        folds: parts into which the images were split, each judged by trainings on the others; 1: none.
        epochs: of each trial.
        share: of the training images that each trial saw.
        seconds: that all trials took.
    """
    names = [name for name, _ in correct]
    simplest = correct[0][1]
    spread = seed_spread(np.stack([right for _, right in correct]))
    gains = [difference(right, simplest, spread) for _, right in correct[1:]]
    corrected = [float(p) for p in holm(np.array([gain.p for gain in gains]))]
    better = [
        place for place, (gain, p) in enumerate(zip(gains, corrected, strict=True), 1) if gain.points > 0 and p < ALPHA
    ]
    chosen = 0
    if better:
        best = max(better, key=lambda place: gains[place - 1].points)
        chosen = next(
            place
            for place in better
            if place == best or difference(correct[best][1], correct[place][1], spread).p >= ALPHA
        )
    trials = tuple(
        MethodTrial(
            method=name,
            top1_validation=float(right.mean()),
            top1_by_seed=tuple(float(value) for value in right.mean(axis=1)),
            gain=gains[place - 1] if place else None,
            p_holm=corrected[place - 1] if place else None,
            chosen=place == chosen,
        )
        for place, (name, right) in enumerate(correct)
    )
    seeds, images = simplest.shape
    reason = _reason(names, gains, chosen, images, seeds)
    return MethodChoice(trials, reason, images, seeds, folds, epochs, share, seconds)


def _reason(names: list[str], gains: list[Difference], chosen: int, images: int, seeds: int) -> str:
    """Return why a method was chosen, in one sentence."""
    judged = f"on {plural(images, 'validation image')} with {plural(seeds, 'seed')}"
    if chosen:
        gain = gains[chosen - 1]
        text = f"{names[chosen]} is {gain.points:.1f} [{gain.low:.1f}, {gain.high:.1f}] points better than {names[0]}"
        return f"{text} {judged}"
    best = max(range(len(gains)), key=lambda place: gains[place].points)
    gain = gains[best]
    largest = f"the largest gain is {gain.points:.1f} [{gain.low:.1f}, {gain.high:.1f}] points, of {names[best + 1]}"
    return f"{names[0]} is taken: no method is shown to be better {judged}; {largest}"


def content(choice: MethodChoice) -> dict[str, Any]:
    """Return the trials and the choice for report.json."""
    rows = [
        {
            "method": one.method,
            "top1_validation": one.top1_validation,
            "top1_by_seed": list(one.top1_by_seed),
            "gain_points": one.gain.points if one.gain else None,
            "gain_ci95": [one.gain.low, one.gain.high] if one.gain else None,
            "p_holm": one.p_holm,
            "chosen": one.chosen,
        }
        for one in choice.trials
    ]
    return {**vars(choice), "trials": rows}


def line(trial: MethodTrial) -> str:
    """Format a method's trials for the console."""
    reached = f"method {trial.method}: {100 * trial.top1_validation:.2f} % on validation"
    if trial.gain is None or trial.p_holm is None:
        return reached
    gain = trial.gain
    return f"{reached}, {gain.points:+.2f} [{gain.low:.2f}, {gain.high:.2f}] points, p {trial.p_holm:.2g} after Holm"
