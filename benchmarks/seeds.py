"""Statistics over several seeds: mean, spread and Student's interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

# Student's t by number of seeds.
T_975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


def spread(values: Sequence[float]) -> dict[str, float | int | None]:
    """Return mean, standard deviation (None for one seed), range and number."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "sd": sd, "low": min(values), "high": max(values), "n": len(values)}


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean over at most ten seeds, by Student's t; None for one seed."""
    if len(values) < 2:
        return None
    mean, half = statistics.mean(values), T_975[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half


def mean(values: Sequence[float]) -> dict[str, object]:
    """Return the mean with its interval and each value, as a result file has it."""
    ends = interval(values)
    return {"mean": statistics.mean(values), "ci95": None if ends is None else list(ends), "each": list(values)}


def needed(values: Sequence[float], low: float, high: float) -> int | None:
    """Return how many seeds of this mean and spread would take the interval off the ends of a band; None: over ten."""
    middle, sd = statistics.mean(values), statistics.stdev(values)
    distance = min(abs(middle - low), abs(middle - high))
    return next(
        (count for count in range(len(values) + 1, 11) if T_975[count] * sd / math.sqrt(count) < distance), None
    )
