"""Correlations of two networks' logits, and the calibration of a network's confidence. Pure functions on arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 15  # of confidence, equally wide
RESAMPLES = 1000

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Reliability:
    """A network's confidence against its accuracy on n images.

    `ece` is the expected calibration error, a fraction, with the 95 % interval of a bootstrap over images. `nll` is
    the mean -log p of the right class, in nats. `images`, `mean_confidence` and `accuracy` are (BINS,), with NaN in an
    empty bin.
    """

    n: int
    top1: float
    confidence: float
    ece: float
    ece_ci95: tuple[float, float]
    nll: float
    images: NDArray[np.int64]
    mean_confidence: Array
    accuracy: Array


def correlation(logits: NDArray[np.float32]) -> Array:
    """Return Pearson's correlation of each pair of classes' logits over the images: (N, K) -> (K, K).

    It is 0 where a logit never changes. Source: Tian et al. 2020 (CRD, arXiv 1910.10699), whose figure shows the
    difference of two such matrices.
    """
    centred = logits.astype(np.float64) - logits.mean(axis=0, dtype=np.float64)
    norm = np.sqrt((centred**2).sum(axis=0))
    unit = np.divide(centred, norm, out=np.zeros_like(centred), where=norm > 0)
    correlations: Array = np.clip(unit.T @ unit, -1.0, 1.0)
    return correlations


def mean_logits(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> Array:
    """Return the mean logits of each true class: (N, K) -> (K, K), one row for each class, NaN without images."""
    counts = np.bincount(labels, minlength=logits.shape[1])
    sums = np.zeros((logits.shape[1], logits.shape[1]))
    np.add.at(sums, labels, logits.astype(np.float64))
    return np.divide(sums, counts[:, None], out=np.full_like(sums, np.nan), where=counts[:, None] > 0)


def off_diagonal(matrix: Array) -> Array:
    """Return the entries beside the diagonal of (K, K)."""
    return matrix[~np.eye(len(matrix), dtype=bool)]


def reliability(logits: NDArray[np.float32], labels: NDArray[np.int64], *, seed: int = 0) -> Reliability:
    """Compare confidence, the largest softmax probability, with accuracy in BINS equal bins of (0, 1].

    The ECE is the mean gap of the bins, weighted by their images. Source: Naeini et al. 2015; Guo et al. 2017
    (arXiv 1706.04599), section 2, which takes 15 bins.

    Args:
        logits: (N, K).
        labels: (N,).
        seed: of the bootstrap.
    """
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    confidence, right = np.exp(log_p.max(axis=1)), logits.argmax(axis=1) == labels
    place = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    counts = np.bincount(place, minlength=BINS)
    sure, correct = (
        np.bincount(place, weights=values, minlength=BINS) for values in (confidence, right.astype(np.float64))
    )
    gap, n = confidence - right, len(labels)
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(n, size=n) for _ in range(RESAMPLES))
    again = [np.abs(np.bincount(place[index], weights=gap[index], minlength=BINS)).sum() / n for index in drawn]
    low, high = (float(value) for value in np.quantile(again, (0.025, 0.975)))
    empty = np.full(BINS, np.nan)
    return Reliability(
        n=n,
        top1=float(right.mean()),
        confidence=float(confidence.mean()),
        ece=float(np.abs(sure - correct).sum() / n),
        ece_ci95=(low, high),
        nll=float(-log_p[np.arange(n), labels].mean()),
        images=counts,
        mean_confidence=np.divide(sure, counts, out=empty.copy(), where=counts > 0),
        accuracy=np.divide(correct, counts, out=empty.copy(), where=counts > 0),
    )
