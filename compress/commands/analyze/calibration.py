"""What the logits of two networks have in common, and how far a network's confidence can be believed. Pure functions on numpy arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 15  # of confidence, equally wide
RESAMPLES = 1000

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Reliability:
    """A network's confidence against its accuracy on n pictures. Per bin, (BINS,): pictures, mean confidence, accuracy (NaN in an empty bin).

    `ece`: expected calibration error, a fraction, with the 95 % interval of a bootstrap over pictures; `nll`: mean -log p of the right class, nats.
    """

    n: int
    top1: float
    confidence: float
    ece: float
    ece_ci95: tuple[float, float]
    nll: float
    pictures: NDArray[np.int64]
    mean_confidence: Array
    accuracy: Array


def correlation(logits: NDArray[np.float32]) -> Array:
    """Pearson's correlation of each pair of classes' logits over the pictures: (N, K) -> (K, K); 0 where a logit never changes.

    Source: Tian et al. 2020 (CRD, arXiv 1910.10699), whose figure shows the difference of two such matrices.
    """
    centred = logits.astype(np.float64) - logits.mean(axis=0, dtype=np.float64)
    norm = np.sqrt((centred**2).sum(axis=0))
    unit = np.divide(centred, norm, out=np.zeros_like(centred), where=norm > 0)
    return np.clip(unit.T @ unit, -1.0, 1.0)


def mean_logits(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> Array:
    """Mean logits of each true class's pictures: (N, K) -> (K, K), a row a true class; NaN in a row without pictures."""
    counts = np.bincount(labels, minlength=logits.shape[1])
    sums = np.zeros((logits.shape[1], logits.shape[1]))
    np.add.at(sums, labels, logits.astype(np.float64))
    return np.divide(sums, counts[:, None], out=np.full_like(sums, np.nan), where=counts[:, None] > 0)


def off_diagonal(matrix: Array) -> Array:
    """The entries beside the diagonal of (K, K)."""
    return matrix[~np.eye(len(matrix), dtype=bool)]


def reliability(logits: NDArray[np.float32], labels: NDArray[np.int64], *, seed: int = 0) -> Reliability:
    """Confidence (the largest softmax probability) against accuracy in BINS equal bins of (0, 1]; the gaps' mean weighted by pictures is the ECE.

    Source: Naeini et al. 2015; Guo et al. 2017 (arXiv 1706.04599), section 2, which takes 15 bins.
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
        pictures=counts,
        mean_confidence=np.divide(sure, counts, out=empty.copy(), where=counts > 0),
        accuracy=np.divide(correct, counts, out=empty.copy(), where=counts > 0),
    )
