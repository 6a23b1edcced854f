"""Activation ranges from statistics: minimum and maximum, quantiles, or the least divergence."""

from __future__ import annotations

import math

import numpy as np

from export.int8.calibrate import BINS, Statistics, histogram_range
from export.runtime import ExportError

CALIBRATORS = ("minmax", "entropy", "percentile")
MIN_PERCENTILE = 99.99
# Values that an 8-bit activation can take.
LEVELS = 256
# With fewer values a histogram has no shape to speak of, and the entropy calibrator keeps the whole range.
MIN_HISTOGRAM_VALUES = 8 * BINS
# Ranges that the entropy calibrator tries beside the whole one.
ENTROPY_CANDIDATES = 64
# Share of an empty level, which keeps the divergence finite.
EPSILON = 1e-6


def check(calibrate: str, percentile: float) -> None:
    """Raise ExportError for a calibrator that is unknown or known to ruin networks."""
    if calibrate not in CALIBRATORS:
        raise ExportError(f"calibration {calibrate!r} is not known; use {', '.join(CALIBRATORS)}")
    if calibrate == "percentile" and not MIN_PERCENTILE <= percentile < 100:
        raise ExportError(
            f"percentile {percentile:g} is refused: it must be at least {MIN_PERCENTILE:g} and below 100, because it "
            "cuts off real activations (measured on EfficientNet-Lite0: 99.9 gives 66.97 % where 99.99 gives 76.91 % "
            "and minmax 76.80 %)"
        )


def choose_ranges(
    statistics: Statistics, calibrate: str, percentile: float = MIN_PERCENTILE
) -> dict[str, tuple[float, float]]:
    """Return (low, high) of each activation, with low <= 0 <= high.

    Args:
        statistics: what was seen.
        calibrate: minmax: what was seen; percentile: from the (1 - p) / 2 quantile to the (1 + p) / 2 one; entropy: see
            `entropy_range`.
        percentile: p in per cent, at least MIN_PERCENTILE.
    """
    check(calibrate, percentile)
    found = {}
    for index, name in enumerate(statistics.names):
        low, high = histogram_range(float(statistics.low[index]), float(statistics.high[index]))
        counts = statistics.counts[index]
        if calibrate == "percentile":
            low, high = percentile_range(counts, low, high, percentile)
        elif calibrate == "entropy":
            low, high = entropy_range(counts, low, high, int(statistics.zeros[index]))
        found[name] = (min(low, 0.0), max(high, 0.0))
    return found


def percentile_range(counts: np.ndarray, low: float, high: float, percentile: float) -> tuple[float, float]:
    """Return the two quantiles that leave out (100 - percentile) / 2 per cent on each side.

    Args:
        counts: a histogram (BINS,).
        low: its left end.
        high: its right end.
        percentile: in per cent.
    """
    share = (1 - percentile / 100) / 2
    below = np.concatenate([[0], np.cumsum(counts)])
    edges = np.linspace(low, high, len(counts) + 1)
    at = np.interp([share * below[-1], (1 - share) * below[-1]], below, edges)
    return float(at[0]), float(at[1])


def entropy_range(counts: np.ndarray, low: float, high: float, zeros: int) -> tuple[float, float]:
    """Return the range whose quantised histogram diverges least, KL(P || Q), between [low, high] and inner quantiles.

    P is the bins inside, with what lies outside added to the outermost bins. Q is the bins inside, merged into LEVELS
    levels, each level's share spread evenly over those of its bins that P fills. Exact zeros are left out, because they
    are always exact. A sparse histogram keeps its range.

    Source: Migacz 2017, "8-bit inference with TensorRT", which is symmetric. The bound at the MIN_PERCENTILE quantiles
    is ours: spikes (a black background behind a stem) make the bare divergence prefer ranges that cut off real
    activations.

    Args:
        counts: a histogram (BINS,).
        low: its left end.
        high: its right end.
        zeros: how many values are exactly 0.
    """
    bins, edges = len(counts), np.linspace(low, high, len(counts) + 1)
    inner = np.interp(percentile_range(counts, low, high, MIN_PERCENTILE), edges, np.arange(bins + 1))
    counts = counts.astype(np.float64)
    zero = min(int(-low / (high - low) * bins), bins - 1) if high > low else 0
    counts[zero] = max(counts[zero] - zeros, 0)
    if counts.sum() < MIN_HISTOGRAM_VALUES:
        return low, high
    best, chosen = math.inf, (0, bins)
    for step in range(ENTROPY_CANDIDATES + 1):
        share = step / ENTROPY_CANDIDATES
        start, stop = math.floor(share * inner[0]), math.ceil(bins + share * (inner[1] - bins))
        divergence = _divergence(counts, start, stop)
        if divergence < best:  # the widest of equal ones
            best, chosen = divergence, (start, stop)
    return float(edges[chosen[0]]), float(edges[chosen[1]])


def _divergence(counts: np.ndarray, start: int, stop: int) -> float:
    """Return KL(P || Q) in nats of quantising counts[start:stop]."""
    inside = counts[start:stop]
    p = inside.copy()
    p[0] += counts[:start].sum()
    p[-1] += counts[stop:].sum()
    filled = p > 0
    level = np.arange(len(inside)) * LEVELS // len(inside)
    share = np.bincount(level, inside, LEVELS) / np.maximum(np.bincount(level, filled, LEVELS), 1)
    q = share[level][filled]
    p, q = p[filled] / p.sum(), q / max(q.sum(), 1.0)
    q = (q + EPSILON) / (q + EPSILON).sum()
    return float((p * np.log(p / q)).sum())
