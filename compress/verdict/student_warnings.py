"""Warnings that stand beside the verdict: what the accuracy of the file that ships does not show.

Classes that are hardly ever right, little agreement with the teacher, a training that ended too early, and training
images of which nearly all are of one class.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.core.records.deployment import Measured
from compress.core.records.warnings import RunWarning
from compress.verdict.intervals import wilson

# Classes that a sentence names.
NAMED = 5
# A class is hardly ever right if its recall is shown to be below this share of the accuracy over all images.
HARDLY = 0.5
# Chance that some class is never right although it is no worse than the others.
BY_CHANCE = 0.05
# Agreement with the teacher is far below an accuracy if its interval ends so far below it, as a fraction.
FAR_BELOW = 0.05
# A rise of validation accuracy at the last epoch counts from so many points on, and beyond what this share of changed
# answers, as one standard error, explains.
LEAST_RISE = 0.01
CHANGED_ANSWERS = 0.15
# The last epochs among which the rise is looked for are this share of all, at least one.
LAST_EPOCHS = 0.05
# Classes are unequal if the largest has so many times the images of the smallest.
UNEQUAL = 10


def of_shipped(measured: Measured) -> list[RunWarning]:
    """Return warnings about the file that ships, from its numbers on the test images."""
    row = next(row for row in measured.models if row["file"] == measured.ships)
    teacher = next((one for one in measured.models if one.get("role") == "teacher"), {})
    return [*_missed_classes(row, measured.per_class), *_disagreement(row, teacher)]


def _missed_classes(row: dict[str, Any], per_class: Sequence[dict[str, Any]]) -> list[RunWarning]:
    """Name the classes that are never or hardly ever right."""
    rows = [one for one in per_class if one["n"] and one.get("student") is not None]
    wrong = 1 - row["top1"]
    missed = []
    for one in rows:
        right = round(one["student"] * one["n"])
        never = right == 0 and len(rows) * wrong ** one["n"] < BY_CHANCE
        if never or wilson(right, one["n"])[1] < HARDLY * row["top1"]:
            missed.append((right / one["n"], f"{one['class']}: {right} of {one['n']} right"))
    if not missed:
        return []
    missed.sort()
    more = f" and {len(missed) - NAMED} more" if len(missed) > NAMED else ""
    listed = "; ".join(text for _, text in missed[:NAMED]) + more
    text = f"{row['file']} hardly ever gets {_classes(len(missed))} right, which its top-1 of {100 * row['top1']:.1f} %"
    return [RunWarning(f"{text} does not show: {listed}", affects_verdict=True)]


def _classes(number: int) -> str:
    return "one class" if number == 1 else f"{number} classes"


def _disagreement(row: dict[str, Any], teacher: dict[str, Any]) -> list[RunWarning]:
    """Return a warning where student and teacher are right on different images."""
    share, n = row.get("agreement_with_teacher"), row.get("images")
    if share is None or not n or "top1" not in teacher:
        return []
    lower = min(row["top1"], teacher["top1"])
    if wilson(share * n, n)[1] >= lower - FAR_BELOW:
        return []
    accuracies = f"top-1 is {100 * row['top1']:.1f} % and the teacher's {100 * teacher['top1']:.1f} %"
    text = f"{row['file']} gives the teacher's answer on only {100 * share:.1f} % of the test images, although its"
    cure = "it has learnt little from this teacher; check the teacher's normalisation and the order of its classes"
    return [RunWarning(f"{text} {accuracies}: {cure}", affects_verdict=True)]


def of_training(history: Path, images: int) -> list[RunWarning]:
    """Return a warning where validation accuracy still rose at the last epoch.

    Args:
        history: the csv of the student's training.
        images: validation images.
    """
    curve = _validation_curve(history)
    last = max(1, round(LAST_EPOCHS * len(curve)))
    if len(curve) <= last or not images:
        return []
    before, end = max(curve[:-last]), curve[-1]
    noise = math.sqrt(CHANGED_ANSWERS / images)
    if end < max(curve) or end - before < max(LEAST_RISE, noise):
        return []
    text = f"validation accuracy still rose at the end of {len(curve)} epochs, from {100 * before:.1f} to"
    return [RunWarning(f"{text} {100 * end:.1f} %: the student is not fully trained (train.epochs)", True)]


def _validation_curve(history: Path) -> list[float]:
    """Return the validation accuracy of each epoch that has one; empty without a file."""
    if not history.is_file():
        return []
    with history.open(newline="", encoding="utf-8") as stream:
        texts = [row.get("top1_validation") for row in csv.DictReader(stream)]
    return [value for text in texts if text and math.isfinite(value := float(text))]


def of_imbalance(labels: NDArray[np.integer], classes: Sequence[str]) -> list[RunWarning]:
    """Return a warning where one class has many times the training images of another. `labels`: -1 for unlabelled."""
    counts = np.bincount(labels[labels >= 0], minlength=len(classes))
    most, least = int(counts.argmax()), int(counts.argmin())
    if len(counts) < 2 or counts[most] < UNEQUAL * max(counts[least], 1):
        return []
    pair = f"{counts[most]:,} of {classes[most]}, {counts[least]:,} of {classes[least]}"
    share = f"always naming {classes[most]} is right on {100 * counts[most] / counts.sum():.1f} %"
    cure = (
        "judge classes by require.min_recall or min_balanced_accuracy; train.sampling: balanced or "
        "train.class_weights: balanced train for them"
    )
    return [RunWarning(f"training images are unequal ({pair}): {share}, so top-1 says little; {cure}", True)]
