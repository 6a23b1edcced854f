"""Intervals and tests where test images come in groups, such as the frames of a clip or the images of a patient.

Images of one group resemble each other, so a hundred images of ten groups say less than a hundred images of a hundred.
Groups are the independent units here; how alike the images of a group are is estimated from the answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.verdict import student_t
from compress.verdict.intervals import PairedDrop, drop_from_counts, score_interval

# With fewer groups the intervals do not cover what they promise; tests/verdict/test_cluster_coverage.py simulates it.
FEWEST_GROUPS = 10
# What the report calls the test behind an interval and a p of grouped images.
TEST = "cluster-robust t test on groups (Obuchowski 1998)"
# Weight of the largest possible design effect, against one for each group that errs and that is right: of few such
# groups the estimate is often too small.
PRIOR_GROUPS = 0.5


def _sums(values: NDArray[np.floating], groups: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.bincount(groups, weights=values).astype(np.float64)


def numbered(groups: NDArray[np.str_]) -> NDArray[np.int64]:
    """Return group names (N,) as numbers from 0, int64 (N,)."""
    numbers: NDArray[np.int64] = np.unique(groups, return_inverse=True)[1].astype(np.int64)
    return numbers


def design_effect(correct: NDArray[np.bool_], groups: NDArray[np.int64]) -> float:
    """Return how many times as many images are needed as if all were independent; at least 1.

    The ratio of the between-group variance of the accuracy, by the jackknife over groups, to the binomial one, drawn
    towards its largest possible value where few groups have both right and wrong answers.

    Args:
        correct: bool (N,).
        groups: the group of each image, numbers from 0, (N,); at least two groups.

    Source: Rao and Scott 1992, Biometrics 48, 577-585.
    """
    sizes, right = _sums(np.ones(len(groups)), groups), _sums(np.asarray(correct, float), groups)
    n, x, count = sizes.sum(), right.sum(), len(sizes)
    largest = float((sizes**2).sum() / n)  # all images of a group alike
    if x in (0, n):
        return largest
    without = (x - right) / (n - sizes)
    variance = (count - 1) / count * ((without - without.mean()) ** 2).sum()
    share = x / n
    estimate = max(1.0, float(variance / (share * (1 - share) / n)))
    telling = min(int((right > 0).sum()), int((right < sizes).sum()))
    return (telling * estimate + PRIOR_GROUPS * largest) / (telling + PRIOR_GROUPS)


def row_drop(row: Mapping[str, Any]) -> PairedDrop:
    """Return the comparison behind a row of `comparisons` in report.json, with groups where the row has them."""
    plain = drop_from_counts(row["lost"], row["gained"], row["images"])
    if row.get("groups") is None:
        return plain
    low, high = row["top1_drop_ci95"]
    return replace(plain, low=low, high=high, p=row["p"], groups=row["groups"])


def accuracy_interval(
    correct: NDArray[np.bool_], groups: NDArray[np.int64], confidence: float = 0.95
) -> tuple[float, float]:
    """Return Wilson's interval of an accuracy on the effective number of images, with t on G - 1 degrees of freedom.

    Args:
        correct: bool (N,).
        groups: the group of each image, numbers from 0, (N,).
        confidence: 0.95 for a 95 % interval.

    Returns:
        (low, high), as fractions; (0, 1) for a single group.
    """
    count = int(groups.max()) + 1
    if count < 2:
        return 0.0, 1.0
    effective = len(groups) / design_effect(correct, groups)
    return score_interval(float(np.mean(correct)) * effective, effective, student_t.quantile(confidence, count - 1))


def paired_drop(
    reference_correct: NDArray[np.bool_], model_correct: NDArray[np.bool_], groups: NDArray[np.int64]
) -> PairedDrop:
    """Compare two models on grouped images: cluster-robust variance of the differences, t on G - 1 degrees of freedom.

    The interval is never narrower than that of independent images, because a few flips tell little of how alike the
    images of a group are.

    Args:
        reference_correct: bool (N,).
        model_correct: bool (N,).
        groups: the group of each image, numbers from 0, (N,).

    Source: Obuchowski 1998, Statistics in Medicine 17, 1495-1507.
    """
    reference, model = np.asarray(reference_correct, bool), np.asarray(model_correct, bool)
    lost, gained, n = int(np.sum(reference & ~model)), int(np.sum(~reference & model)), len(groups)
    count = int(groups.max()) + 1
    plain = drop_from_counts(lost, gained, n)
    if count < 2:
        return replace(plain, low=-100.0, high=100.0, p=1.0, groups=count)
    sizes = _sums(np.ones(n), groups)
    difference = _sums(reference.astype(float) - model, groups)
    mean = difference.sum() / n
    telling = int((difference != 0).sum())
    variance = count / (count - 1) * ((difference - sizes * mean) ** 2).sum() / n**2
    # As if groups flipped as a whole, at least one of them: of few groups with flips the variance is often too small.
    flips = max((lost + gained) / n, 1 / count)
    largest = flips * (sizes**2).sum() / n**2
    variance = (telling * variance + PRIOR_GROUPS * max(variance, largest)) / (telling + PRIOR_GROUPS)
    error = math.sqrt(variance)
    half = 100 * student_t.quantile(0.95, count - 1) * error
    point = plain.drop_points
    p = student_t.two_sided_p(mean / error, count - 1)
    return replace(
        plain, low=min(plain.low, point - half), high=max(plain.high, point + half), p=max(p, plain.p), groups=count
    )
