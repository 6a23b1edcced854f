"""Compares a network with the majority baseline: always naming the commonest class.

A teacher that does not beat the baseline has nothing to teach, and a student that does not is of no use.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compress.core.records.deployment import Measured
from compress.core.records.training import Trained, TrainingData
from compress.core.records.warnings import RunWarning
from compress.data import split_of
from compress.verdict.intervals import wilson


def of_teacher(teacher: Trained, data: TrainingData) -> list[RunWarning]:
    """Return a warning if the teacher is not shown to beat the baseline on the validation images."""
    labels, _, validation = split_of(data)
    counts = np.bincount(labels[validation])
    found = _not_better(f"teacher {teacher.network.model}", teacher.top1_validation, counts, "validation")
    advice = teacher.advice or "it has little to teach; train it longer or start from pretrained weights"
    return [RunWarning(f"{found}: {advice}", affects_verdict=True)] if found else []


def of_shipped(measured: Measured) -> list[RunWarning]:
    """Return a warning if the file that ships is not shown to beat the baseline on the test images."""
    row = next(row for row in measured.models if row["file"] == measured.ships)
    counts = np.array([one["n"] for one in measured.per_class])
    # Of grouped images the row's interval counts groups.
    found = _not_better(row["file"], row["top1"], counts, "test", row["top1_ci95"] if row.get("groups") else None)
    advice = "whatever the limits say, it is of no use yet; train longer, with more images or from pretrained weights"
    return [RunWarning(f"{found}: {advice}", affects_verdict=True)] if found else []


def _not_better(
    name: str, top1: float, counts: np.ndarray, part: str, interval: Sequence[float] | None = None
) -> str | None:
    """Describe an accuracy whose 95 % interval reaches the share of the commonest class; None where it lies above.

    Args:
        name: the network or file.
        top1: its accuracy, a fraction.
        counts: images of each class, int (K,).
        part: the split they belong to.
        interval: the accuracy's; None: Wilson's, for independent images.
    """
    n, share = int(counts.sum()), counts.max() / counts.sum()
    low, high = interval or wilson(top1 * n, n)
    if low > share:
        return None
    numbers = f"{100 * top1:.2f} % [{100 * low:.2f}, {100 * high:.2f}] on {n:,} {part} images"
    return f"{name}: {numbers} is not shown to be better than always naming the commonest class ({100 * share:.2f} %)"
