"""Accuracy by class: recall of each class, balanced accuracy and macro-F1, with intervals. Needs numpy alone.

An accuracy over all images hides a class that is never right, the more so the fewer images the class has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Resamples behind an interval; fewer where there are very many classes.
RESAMPLES = 2000
MOST_CELLS = 2_000_000
# Images that are added over all classes together before resampling, half of them right: a class whose images are all
# right, or all wrong, would otherwise have no spread at all.
ADDED_IMAGES = 2.0

Interval = tuple[float, float]


@dataclass(frozen=True)
class ClassMetrics:
    """Metrics that count every class alike, as fractions, each with its 95 % interval.

    Classes without images are left out.
    """

    balanced_accuracy: float
    balanced_accuracy_ci95: Interval
    macro_f1: float
    macro_f1_ci95: Interval

    def row(self) -> dict[str, Any]:
        """Return the keys of report.json."""
        return {
            "balanced_accuracy": self.balanced_accuracy,
            "balanced_accuracy_ci95": list(self.balanced_accuracy_ci95),
            "macro_f1": self.macro_f1,
            "macro_f1_ci95": list(self.macro_f1_ci95),
        }


def class_metrics(labels: NDArray[np.integer], answers: NDArray[np.integer], classes: int, seed: int) -> ClassMetrics:
    """Return balanced accuracy (the mean of the classes' recalls) and macro-F1 (the mean of their F1).

    The intervals are a smoothed bootstrap within classes, which keeps the number of images of each class: in each
    resample every class of n images draws n - 1 answers from its own, to which ADDED_IMAGES / K are added. A test
    simulates the coverage. Sources: Efron and Tibshirani 1993, section 16.5, for smoothing; McCarthy and Snowden 1985
    for n - 1, without which classes of few images would make the interval too narrow.

    Args:
        labels: (N,), in [0, classes).
        answers: (N,), the class that the model names.
        classes: K.
        seed: of the resampling.
    """
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels, answers), 1)
    right, asked, named = np.diagonal(counts), counts.sum(axis=1), counts.sum(axis=0)
    present = asked > 0
    balanced, f1 = _means(right[None], asked, named[None], present)
    drawn_right, drawn_named = _resample(counts, present, np.random.default_rng(seed))
    drawn_balanced, drawn_f1 = _means(drawn_right, asked, drawn_named, present)
    return ClassMetrics(
        float(balanced[0]), _interval(drawn_balanced, balanced[0]), float(f1[0]), _interval(drawn_f1, f1[0])
    )


def f1_of_classes(labels: NDArray[np.integer], answers: NDArray[np.integer], classes: int) -> NDArray[np.float64]:
    """Return each class's F1, the harmonic mean of precision and recall, (K,); 0 where it is never right."""
    right = np.bincount(labels[labels == answers], minlength=classes)
    both = np.bincount(labels, minlength=classes) + np.bincount(answers, minlength=classes)
    f1: NDArray[np.float64] = 2 * right / np.maximum(both, 1)
    return f1


def _means(
    right: NDArray[Any], asked: NDArray[Any], named: NDArray[Any], present: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return balanced accuracy and macro-F1 of each resample, (R,) each, over the classes that are present.

    `right` and `named` are (R, K); `asked`, the images of each class, is (K,).
    """
    recall = right[:, present] / asked[present]
    f1 = 2 * right[:, present] / (asked + named)[:, present]
    return recall.mean(axis=1), f1.mean(axis=1)


def _resample(
    counts: NDArray[np.int64], present: NDArray[np.bool_], random: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return right answers and answers given of the resamples, (R, K) each, in units of images."""
    classes, asked = len(counts), counts.sum(axis=1)
    resamples = max(200, min(RESAMPLES, MOST_CELLS // classes))
    right, named = np.zeros((resamples, classes)), np.zeros((resamples, classes))
    others = np.zeros(resamples)
    added = ADDED_IMAGES / int(present.sum())
    for index in np.flatnonzero(present):
        places = np.union1d(np.flatnonzero(counts[index]), [index])
        weights = counts[index, places].astype(np.float64)
        weights[places == index] += added / 2
        # The last cell: an added answer that names any of the other classes.
        weights = np.append(weights, added / 2 if classes > 1 else 0.0)
        draws = max(int(asked[index]) - 1, 1)
        drawn = random.multinomial(draws, weights / weights.sum(), size=resamples) * (asked[index] / draws)
        named[:, places] += drawn[:, :-1]
        right[:, index] = drawn[:, np.flatnonzero(places == index)[0]]
        others += drawn[:, -1]
        named[:, index] -= drawn[:, -1] / max(classes - 1, 1)
    return right, named + others[:, None] / max(classes - 1, 1)


def _interval(drawn: NDArray[np.float64], value: float) -> Interval:
    """Return the middle 95 % of the resamples, widened to the value itself where smoothing moved them off it."""
    low, high = np.percentile(drawn, (2.5, 97.5))
    return max(min(float(low), float(value)), 0.0), min(max(float(high), float(value)), 1.0)
