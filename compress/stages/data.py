"""The data set, decoded once into arrays of uint8; later stages get only the parts that they may read."""

from __future__ import annotations

from pathlib import Path

from compress.data import sources
from compress.results import CalibrationData, Prepared, TestData, TrainingData
from compress.schema import Data
from compress.store import Context, Stage


def _prepare(config: Data, *, context: Context, fingerprint: str) -> Prepared:
    """`config.root` is absolute here; `fingerprint` names the source's content in the key."""
    return sources.prepare(config, context.work, base=Path(), report=context.console.line)


prepare = Stage("data", 1, _prepare, Prepared)


def training(prepared: Prepared, config: Data) -> TrainingData:
    """What training, strip and convert may read."""
    return TrainingData(
        images=prepared.train_images,
        labels=prepared.train_labels,
        classes=prepared.classes,
        image_size=prepared.image_size,
        augment=prepared.augment,
        validation=config.validation,
        split_seed=config.split_seed,
    )


def calibration(prepared: Prepared, config: Data) -> CalibrationData:
    """What quantize may read."""
    return CalibrationData(training(prepared, config), config.calibration)


def test(prepared: Prepared) -> TestData:
    """What `validate` alone may read."""
    return TestData(images=prepared.test_images, labels=prepared.test_labels, classes=prepared.classes, image_size=prepared.image_size)
