"""The data set, decoded once into arrays of uint8; later stages get only the parts that they may read."""

from __future__ import annotations

from pathlib import Path

from compress.data import folder, sources
from compress.results import CalibrationData, File, Prepared, TestData, TrainingData
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


def photos(config: Data, root: Path | None, count: int = 16) -> tuple[File, ...]:
    """Picture files of a folder of photos as they are, spread over its classes, JPEGs where there are any: to be decoded for timing
    and on the device.

    Empty for sources that hold arrays; their test pictures have no file.
    """
    if config.source != "folder" or root is None or count == 0:
        return ()
    from compress.data import pictures  # needs Pillow, which training on arrays does without

    layout = folder.scan(root)
    paths = [root / picture.path for picture in layout.test or layout.train]
    jpegs = [path for path in paths if path.suffix.lower() in (".jpg", ".jpeg")] or paths
    readable = (path for path in jpegs[:: max(1, len(jpegs) // count)] if pictures.readable(path))
    return tuple(File.of(path) for path, _ in zip(readable, range(count), strict=False))
