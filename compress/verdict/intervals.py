"""Intervals and tests for accuracies on one set of test images. Pure functions; imports nothing of the project.

Intervals of times and speed-ups are in `export.runtime.latency_stats`.

Two models are compared on the same images, so only the images that flip count: *lost* (the reference is right, the
model is wrong) and *gained* (the other way round). A drop is `100 (lost - gained) / n` points: positive when the model
is worse.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class PairedDrop:
    """A model's accuracy drop against a reference on the same n images.

    In points, with a 95 % interval and McNemar's exact p. `groups`: how many groups the images come in, where interval
    and p are those of `compress.verdict.clusters`; None: the images are independent.
    """

    n: int
    lost: int
    gained: int
    drop_points: float
    low: float
    high: float
    p: float
    groups: int | None = None


@dataclass(frozen=True)
class ClassChange:
    """Accuracies (fractions; None without images) of reference and model on the n images of one class."""

    index: int
    n: int
    reference: float | None
    model: float | None
    lost: int
    gained: int


def _z(confidence: float) -> float:
    """Return the two-sided normal quantile: 1.96 for 0.95."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def wilson(successes: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return the score interval of a proportion, as fractions, without continuity correction.

    Args:
        successes: how many; may be fractional, for planning.
        n: of how many, above 0.
        confidence: 0.95 for a 95 % interval.

    Returns:
        (low, high), in [0, 1]. Source: Wilson 1927; Newcombe 1998, method 3.

    Raises:
        ValueError: `successes` is not between 0 and `n`.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"need 0 <= successes <= n and n > 0, got {successes} of {n}")
    return score_interval(successes, n, _z(confidence))


def score_interval(successes: float, n: float, z: float) -> tuple[float, float]:
    """Return Wilson's interval for the two-sided quantile `z`, of the normal distribution or of Student's t."""
    share, spread = successes / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    # The ends are 0 and 1 exactly there; rounding would miss them by an ulp.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def mcnemar_exact(lost: int, gained: int) -> float:
    """Return the two-sided exact p of "both flips are equally likely".

    2 P(X <= min), X ~ Binomial(lost + gained, 1/2), capped at 1. Source: McNemar 1947 in its exact conditional form
    (Fagerland et al. 2013, section 2). Computed in whole numbers, so that nothing underflows early.
    """
    flips, fewer = lost + gained, min(lost, gained)
    if fewer < 0:
        raise ValueError(f"flips cannot be negative, got {lost} and {gained}")
    term = total = 1
    for k in range(fewer):
        term = term * (flips - k) // (k + 1)
        total += term
    return min(1.0, 2 * total / 2**flips) if flips else 1.0


def _score(lost: float, gained: float, n: float, difference: float) -> float:
    """Return Tango's score statistic of "P(lost) - P(gained) = difference"; it falls as the difference grows."""
    linear = (2 * n - lost + gained) * difference - lost - gained
    constant = -gained * difference * (1 - difference)
    root = math.sqrt(max(linear * linear - 8 * n * constant, 0.0))
    # P(gained) at its restricted maximum likelihood: the positive root of 2n q^2 + linear q + constant, computed
    # without cancellation.
    gain = (root - linear) / (4 * n) if linear <= 0 else -2 * constant / (linear + root)
    variance = n * (2 * gain + difference * (1 - difference))
    distance = lost - gained - n * difference
    if variance > 1e-300:
        return distance / math.sqrt(variance)
    return 0.0 if distance == 0 else math.copysign(math.inf, distance)


def drop_score(lost: int, gained: int, n: int, difference: float) -> float:
    """Return Tango's score statistic of "the drop is `difference`", a fraction; standard normal if it is."""
    return _score(lost, gained, n, difference)


def _cross(score: Callable[[float], float], wanted: float, low: float, high: float) -> float:
    """Find by bisection where a falling function takes a value."""
    for _ in range(64):
        middle = (low + high) / 2
        if score(middle) > wanted:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def difference_interval(lost: float, gained: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return the score interval of the paired difference (lost - gained) / n.

    It is used instead of the closed form of Bonett and Price 2012 because its upper end certifies a limit: at n = 40 to
    400 a true drop lies above it at most 2.7 times in 100, above theirs 5.8 times; a test computes this exactly.

    Args:
        lost: images that only the reference gets right; may be fractional, for planning.
        gained: images that only the model gets right; may be fractional.
        n: all images, above 0.
        confidence: 0.95 for a 95 % interval.

    Returns:
        (low, high), as fractions. Source: Tango 1998, Statistics in Medicine 17, 891-908, the score interval.

    Raises:
        ValueError: the counts are negative or larger than `n`.
    """
    if n <= 0 or lost < 0 or gained < 0 or lost + gained > n * (1 + 1e-9):
        raise ValueError(f"need lost + gained <= n and n > 0, got {lost}, {gained} of {n}")
    z, seen = _z(confidence), (lost - gained) / n

    def score(difference: float) -> float:
        return _score(lost, gained, n, difference)

    return _cross(score, z, -1.0, seen), _cross(score, -z, seen, 1.0)


def paired_drop(reference_correct: NDArray[np.bool_], model_correct: NDArray[np.bool_]) -> PairedDrop:
    """Compare two models image by image. Both arrays are bool (N,), for the same images in the same order.

    Raises:
        ValueError: the shapes differ, or there are no images.
    """
    reference, model = np.asarray(reference_correct, bool), np.asarray(model_correct, bool)
    if reference.shape != model.shape or reference.ndim != 1 or not reference.size:
        raise ValueError(f"need two arrays (N,) of the same images, got {reference.shape} and {model.shape}")
    return drop_from_counts(int(np.sum(reference & ~model)), int(np.sum(~reference & model)), reference.size)


def drop_from_counts(lost: int, gained: int, n: int) -> PairedDrop:
    """Make the same comparison from the numbers of flips, as report.json stores them."""
    low, high = difference_interval(lost, gained, n)
    return PairedDrop(n, lost, gained, 100 * (lost - gained) / n, 100 * low, 100 * high, mcnemar_exact(lost, gained))


def holm(p_values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Adjust p values (K,) for having tested K hypotheses, so that any false rejection stays below the level.

    Source: Holm 1979.
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def top_margin(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return how sure a model is: the probability of its first answer minus that of its second.

    `logits` (N, K), K >= 2; the result is (N,), in [0, 1].
    """
    shifted = np.asarray(logits, np.float64) - np.max(logits, axis=1, keepdims=True)
    odds = np.exp(shifted)
    two = np.partition(odds, -2, axis=1)[:, -2:]
    margin: NDArray[np.float64] = (two[:, 1] - two[:, 0]) / odds.sum(axis=1)
    return margin


def least_sure(logits: NDArray[np.floating], share: float) -> NDArray[np.bool_]:
    """Mark the `share` of images with the lowest `top_margin`, bool (N,).

    The number is rounded and at least one; among equal margins earlier images come first.
    """
    margin = top_margin(logits)
    chosen = np.zeros(len(margin), bool)
    chosen[np.argsort(margin, kind="stable")[: max(1, round(share * len(margin)))]] = True
    return chosen


def top_k_correct(logits: NDArray[np.floating], labels: NDArray[np.integer], k: int) -> NDArray[np.bool_]:
    """Mark the images whose label is among the k largest logits, bool (N,).

    Args:
        logits: (N, K). Of equal logits the lower class index comes first, as with argmax. A row with a NaN is wrong.
        labels: (N,), in [0, K).
        k: with k >= K every row without a NaN is right.

    Raises:
        ValueError: the shapes do not fit.
    """
    logits, labels = np.asarray(logits), np.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"need logits (N, K) and labels (N,), got {logits.shape} and {labels.shape}")
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    earlier = np.arange(logits.shape[1])[None, :] < labels[:, None]
    ahead = np.sum((logits > own) | ((logits == own) & earlier), axis=1)
    right: NDArray[np.bool_] = (ahead < k) & ~np.isnan(logits).any(axis=1)
    return right


def per_class(
    labels: NDArray[np.integer], reference_correct: NDArray[np.bool_], model_correct: NDArray[np.bool_], classes: int
) -> list[ClassChange]:
    """Return both accuracies and the flips of each class.

    Args:
        labels: (N,), in [0, classes).
        reference_correct: bool (N,), for the reference.
        model_correct: bool (N,), for the model.
        classes: how many classes there are.
    """
    changes = []
    for index in range(classes):
        chosen = np.asarray(labels) == index
        reference, model = np.asarray(reference_correct, bool)[chosen], np.asarray(model_correct, bool)[chosen]
        n = int(chosen.sum())
        right = (float(reference.mean()), float(model.mean())) if n else (None, None)
        changes.append(
            ClassChange(index, n, right[0], right[1], int(np.sum(reference & ~model)), int(np.sum(~reference & model)))
        )
    return changes
