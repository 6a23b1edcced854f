"""Intervals and tests for accuracies on one set of test pictures. Pure functions; imports nothing of the project.

Two models are compared on the same pictures, so what counts is the pictures that flip: *lost* (the reference is right, the
model is wrong) and *gained* (the other way round). A drop is `100 (lost - gained) / n` points: positive when the model is worse.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

MOST_PICTURES = 10**9  # beyond this a drop sits on its limit for every practical purpose


@dataclass(frozen=True)
class PairedDrop:
    """A model's accuracy drop against a reference on the same n pictures, in points, with a 95 % interval and McNemar's exact p."""

    n: int
    lost: int
    gained: int
    drop_points: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class ClassChange:
    """Accuracies (fractions; None without pictures) of reference and model on the n pictures of one class."""

    index: int
    n: int
    reference: float | None
    model: float | None
    lost: int
    gained: int


def _z(confidence: float) -> float:
    """The two-sided normal quantile: 1.96 for 0.95."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def wilson(successes: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a proportion, as fractions, without continuity correction. Source: Wilson 1927; Newcombe 1998, method 3."""
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"need 0 <= successes <= n and n > 0, got {successes} of {n}")
    z = _z(confidence)
    share, spread = successes / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    # The ends are 0 and 1 exactly there; rounding would miss them by an ulp.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def mcnemar_exact(lost: int, gained: int) -> float:
    """Two-sided exact p of "both flips are equally likely": 2 P(X <= min), X ~ Binomial(lost + gained, 1/2), capped at 1.

    Source: McNemar 1947 in its exact conditional form (Fagerland et al. 2013, section 2). In whole numbers, so nothing underflows early.
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
    """Tango's score statistic of "P(lost) - P(gained) = difference"; falls as the difference grows."""
    linear = (2 * n - lost + gained) * difference - lost - gained
    constant = -gained * difference * (1 - difference)
    root = math.sqrt(max(linear * linear - 8 * n * constant, 0.0))
    # The positive root of 2n q^2 + linear q + constant, without cancellation: P(gained) at its restricted maximum likelihood.
    gain = (root - linear) / (4 * n) if linear <= 0 else -2 * constant / (linear + root)
    variance = n * (2 * gain + difference * (1 - difference))
    distance = lost - gained - n * difference
    if variance > 1e-300:
        return distance / math.sqrt(variance)
    return 0.0 if distance == 0 else math.copysign(math.inf, distance)


def _cross(score: Callable[[float], float], wanted: float, low: float, high: float) -> float:
    """Where a falling function takes a value, by bisection."""
    for _ in range(64):
        middle = (low + high) / 2
        if score(middle) > wanted:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def difference_interval(lost: float, gained: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of the paired difference (lost - gained) / n, as fractions.

    Chosen over the closed form of Bonett and Price 2012: a true drop lies above the upper end at most 2.7 times in 100 (theirs 5.8) at
    n = 40 to 400, which a test computes exactly, and that end is what certifies a limit. Counts may be fractional, for planning.
    Source: Tango 1998, Statistics in Medicine 17, 891-908, the score interval.
    """
    if n <= 0 or lost < 0 or gained < 0 or lost + gained > n * (1 + 1e-9):
        raise ValueError(f"need lost + gained <= n and n > 0, got {lost}, {gained} of {n}")
    z, seen = _z(confidence), (lost - gained) / n

    def score(difference: float) -> float:
        return _score(lost, gained, n, difference)

    return _cross(score, z, -1.0, seen), _cross(score, -z, seen, 1.0)


def paired_drop(reference_correct: NDArray[np.bool_], model_correct: NDArray[np.bool_]) -> PairedDrop:
    """Compare two models picture by picture. Both bool (N,), in the same order of pictures.

    Raises: ValueError for other shapes or no pictures.
    """
    reference, model = np.asarray(reference_correct, bool), np.asarray(model_correct, bool)
    if reference.shape != model.shape or reference.ndim != 1 or not reference.size:
        raise ValueError(f"need two arrays (N,) of the same pictures, got {reference.shape} and {model.shape}")
    return drop_from_counts(int(np.sum(reference & ~model)), int(np.sum(~reference & model)), reference.size)


def drop_from_counts(lost: int, gained: int, n: int) -> PairedDrop:
    """The same comparison from the numbers of flips, as `report.json` stores them."""
    low, high = difference_interval(lost, gained, n)
    return PairedDrop(n, lost, gained, 100 * (lost - gained) / n, 100 * low, 100 * high, mcnemar_exact(lost, gained))


def _fewest(n: int, settled: Callable[[float], bool]) -> int | None:
    """The smallest number of pictures, from n on, for which a monotone condition holds; None beyond MOST_PICTURES."""
    high = n
    while not settled(high):
        high *= 2
        if high > MOST_PICTURES:
            return None
    low = max(n, high // 2)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if settled(middle) else (middle + 1, high)
    return high


def pictures_needed(drop: PairedDrop, limit_points: float) -> int | None:
    """How many test pictures put the interval on one side of the limit, should lost and gained keep their shares.

    About one time in two that many will do. None when the drop sits on the limit, where no number would.
    """
    limit = limit_points / 100

    def settled(n: float) -> bool:
        low, high = difference_interval(drop.lost * n / drop.n, drop.gained * n / drop.n, n)
        return high < limit or low > limit

    return _fewest(drop.n, settled)


def pictures_needed_top1(correct: int, n: int, limit: float) -> int | None:
    """How many test pictures put Wilson's interval of the accuracy on one side of the limit (a fraction); None on the limit."""

    def settled(pictures: float) -> bool:
        low, high = wilson(correct / n * pictures, pictures)
        return high < limit or low > limit

    return _fewest(n, settled)


def samples_needed(n: int, value: float, edge: float, limit: float) -> int | None:
    """How many samples bring the interval's edge next to the limit up to it; widths shrink with 1 / sqrt(n). None on the limit."""
    if limit == value:
        return None
    needed = n * ((edge - value) / (limit - value)) ** 2
    # Rounding up would turn an exact whole number with a rounding error into the next one.
    return math.ceil(needed * (1 - 1e-9)) if needed <= MOST_PICTURES else None


def certifiable_margin(n: float, flips: float) -> float:
    """The smallest limit, in points, that n pictures can certify for a model without any drop that flips this many of them."""
    return 100 * difference_interval(flips / 2, flips / 2, n)[1]


def pictures_for_margin(n: int, flips: int, margin_points: float) -> int | None:
    """How many test pictures certify a margin for a model without any drop, should flips keep their share; None for a margin of 0.

    About 1.96^2 x share of flips / margin^2: 960 pictures resolve 1 point where 2.5 % flip.
    """
    return (
        _fewest(n, lambda pictures: certifiable_margin(pictures, flips * pictures / n) < margin_points)
        if margin_points > 0
        else None
    )


def holm(p_values: NDArray[np.floating]) -> NDArray[np.float64]:
    """p values (K,) adjusted for having looked at K of them: the chance that any true null is rejected stays below the level.

    Source: Holm 1979.
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def top_margin(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """How sure a model is, (N,) in [0, 1]: probability of its first answer less that of its second, of logits (N, K), K >= 2."""
    shifted = np.asarray(logits, np.float64) - np.max(logits, axis=1, keepdims=True)
    odds = np.exp(shifted)
    two = np.partition(odds, -2, axis=1)[:, -2:]
    return (two[:, 1] - two[:, 0]) / odds.sum(axis=1)


def least_sure(logits: NDArray[np.floating], share: float) -> NDArray[np.bool_]:
    """The pictures (N,) bool with the lowest `share` of `top_margin`, rounded to whole pictures, at least one; earlier ones first among equals."""
    margin = top_margin(logits)
    chosen = np.zeros(len(margin), bool)
    chosen[np.argsort(margin, kind="stable")[: max(1, round(share * len(margin)))]] = True
    return chosen


def top_k_correct(logits: NDArray[np.floating], labels: NDArray[np.integer], k: int) -> NDArray[np.bool_]:
    """Whether the label is among the k largest of logits (N, K); bool (N,).

    Of equal logits the lower class index comes first, as with argmax. A row with a NaN is wrong. With k >= K every other row is right.
    """
    logits, labels = np.asarray(logits), np.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"need logits (N, K) and labels (N,), got {logits.shape} and {labels.shape}")
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    earlier = np.arange(logits.shape[1])[None, :] < labels[:, None]
    ahead = np.sum((logits > own) | ((logits == own) & earlier), axis=1)
    return (ahead < k) & ~np.isnan(logits).any(axis=1)


def per_class(
    labels: NDArray[np.integer], reference_correct: NDArray[np.bool_], model_correct: NDArray[np.bool_], classes: int
) -> list[ClassChange]:
    """Both accuracies and the flips of each class. labels (N,) in [0, classes); both bool (N,)."""
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
