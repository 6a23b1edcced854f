"""Report another file as shipped than `validate` chose, after the recipe's device was asked."""

from __future__ import annotations

import dataclasses

import numpy as np

from compress.core.records.base import File
from compress.core.records.deployment import Measured
from compress.core.records.training import TestData
from compress.core.store import Context, Stage
from compress.data import test_arrays
from compress.verdict import slices


def run_ship_float(config: str, *, context: Context, measured: Measured, test: TestData) -> Measured:
    """Return `measured` for the file `config`, which ships: its classes, slices and images, from stored logits."""
    images, labels = test_arrays(test)
    with np.load(measured.predictions.path) as stored:
        logits = {name.removeprefix("logits/"): stored[name] for name in stored.files if name.startswith("logits/")}
    teacher = next(row["file"] for row in measured.models if row["role"] == "teacher")
    floats = next(row["file"] for row in measured.models if row["role"] == "student" and row["precision"] == "fp32")
    found = slices.changes(
        images,
        labels,
        logits,
        teacher=teacher,
        model=config,
        floats=None if config == floats else floats,
        classes=test.classes,
    )
    path = context.work / "pictures.npz"
    np.savez_compressed(path, **found.images)  # type: ignore[arg-type]
    return dataclasses.replace(
        measured, per_class=found.per_class, slices=found.unsure, gallery=File.of(path), ships=config
    )


# "settle" is this stage's name in cache keys, folders and reports since 0.1.0.
SHIP_FLOAT = Stage("settle", 2, run_ship_float, Measured)
