"""Whether a network is shown to do better than always naming the commonest class. One that is not has nothing to teach, and nothing to ship."""

from __future__ import annotations

import numpy as np

from compress.core.records.deployment import Measured
from compress.core.records.training import Trained, TrainingData
from compress.data.splits import carve
from compress.verdict.intervals import wilson


def of_teacher(teacher: Trained, data: TrainingData) -> list[str]:
    """A sentence on the chosen teacher, by the validation pictures, or nothing."""
    labels = np.load(data.labels.path)
    counts = np.bincount(labels[carve(labels, data.validation, data.split_seed)[1]])
    said = _sentence(f"teacher {teacher.network.model}", teacher.top1_validation, counts, "validation")
    return [f"{said}: it has little to teach; train it longer or start from pretrained weights"] if said else []


def of_shipped(measured: Measured) -> list[str]:
    """A sentence on the file that ships, by the test pictures, or nothing."""
    row = next(row for row in measured.models if row["file"] == measured.ships)
    said = _sentence(row["file"], row["top1"], np.array([one["n"] for one in measured.per_class]), "test")
    return (
        [
            f"{said}: whatever the limits say, it is of no use yet; train longer, with more pictures or from pretrained weights"
        ]
        if said
        else []
    )


def _sentence(name: str, top1: float, counts: np.ndarray, part: str) -> str | None:
    """None where the 95 % interval of `top1` (a fraction) lies above the share of the commonest class. counts: pictures of each class."""
    n, share = int(counts.sum()), counts.max() / counts.sum()
    low, high = wilson(top1 * n, n)
    if low > share:
        return None
    numbers = f"{100 * top1:.2f} % [{100 * low:.2f}, {100 * high:.2f}] on {n:,} {part} pictures"
    return f"{name}: {numbers} is not shown to be better than always naming the commonest class ({100 * share:.2f} %)"
