"""Small random arrays as a data set, prepared, and the records that stages get of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from compress.core.records.training import Prepared, TestData, TrainingData
from compress.data.sources.prepare import prepare_data
from compress.recipe import schema


def prepared(config: schema.Data, work: Path, base: Path = Path("/")) -> tuple[Prepared, list[str]]:
    """Prepare a data set; return its record and the progress lines."""
    lines: list[str] = []
    return prepare_data(config, work, base=base, report=lines.append), lines


def random_arrays(seed: int = 0, side: int = 12, grey: bool = False) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file: 30 training and 9 test images of three classes."""
    random = np.random.default_rng(seed)
    shape = (side, side) if grey else (side, side, 3)
    return {
        "train_images": random.integers(0, 256, (30, *shape), dtype=np.uint8),
        "train_labels": np.arange(30) % 3,
        "test_images": random.integers(0, 256, (9, *shape), dtype=np.uint8),
        "test_labels": np.arange(9) % 3,
        "class_names": np.array(["a", "b", "c"]),
    }


def records(made: Prepared, validation: float = 0.2) -> tuple[TrainingData, TestData]:
    """Return what training and the final validation get of a prepared set."""
    training = TrainingData(
        made.train_images, made.train_labels, made.classes, made.image_size, made.augment, validation, 0
    )
    return training, TestData(made.test_images, made.test_labels, made.classes, made.image_size)
