"""How many images or timed runs would decide about a limit. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable

from compress.verdict.intervals import PairedDrop, difference_interval, wilson

# A drop that needs more images to be told from its limit sits on the limit for every practical purpose.
MOST_IMAGES = 10**9


def _fewest(n: int, settled: Callable[[float], bool]) -> int | None:
    """Return the smallest number of images, from n on, that meets a monotone condition; None beyond MOST_IMAGES."""
    high = n
    while not settled(high):
        high *= 2
        if high > MOST_IMAGES:
            return None
    low = max(n, high // 2)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if settled(middle) else (middle + 1, high)
    return high


def images_needed(drop: PairedDrop, limit_points: float) -> int | None:
    """Return how many test images put the interval on one side of the limit, if its lost and gained shares stay.

    That many are enough about one time in two. None if the drop sits on the limit, where no number is enough.
    """
    limit = limit_points / 100

    def settled(n: float) -> bool:
        low, high = difference_interval(drop.lost * n / drop.n, drop.gained * n / drop.n, n)
        return high < limit or low > limit

    return _fewest(drop.n, settled)


def images_needed_top1(correct: int, n: int, limit: float) -> int | None:
    """Return how many test images put Wilson's interval of an accuracy on one side of a limit.

    Args:
        correct: images that are classified correctly now.
        n: images now.
        limit: a fraction.

    Returns:
        The number of images; None if the accuracy sits on the limit.
    """

    def settled(images: float) -> bool:
        low, high = wilson(correct / n * images, images)
        return high < limit or low > limit

    return _fewest(n, settled)


def samples_needed(n: int, value: float, edge: float, limit: float) -> int | None:
    """Return how many samples move the edge of an interval up to the limit; widths shrink with 1 / sqrt(n).

    Args:
        n: samples now.
        value: the estimate.
        edge: the end of its interval that lies beyond the limit.
        limit: in the same unit.

    Returns:
        The number of samples; None if the estimate sits on the limit.
    """
    if limit == value:
        return None
    needed = n * ((edge - value) / (limit - value)) ** 2
    # Rounding up would turn an exact whole number with a rounding error into the next one.
    return math.ceil(needed * (1 - 1e-9)) if needed <= MOST_IMAGES else None


def certifiable_margin(n: float, flips: float) -> float:
    """Return the smallest limit, in points, that n images can certify for a model without a drop and so many flips."""
    return 100 * difference_interval(flips / 2, flips / 2, n)[1]


def images_for_margin(n: int, flips: int, margin_points: float) -> int | None:
    """Return how many test images certify a margin for a model without a drop, if flips keep their share.

    About 1.96^2 x share of flips / margin^2: 960 images resolve 1 point where 2.5 % flip.

    Args:
        n: images now.
        flips: how many of them flip.
        margin_points: the margin to certify.

    Returns:
        The number of images; None for a margin of 0.
    """
    if margin_points <= 0:
        return None
    return _fewest(n, lambda images: certifiable_margin(images, flips * images / n) < margin_points)
