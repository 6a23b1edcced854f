"""Decode the data set once into uint8 arrays, and give later stages only the parts that they may read."""

from __future__ import annotations

from pathlib import Path

from compress.core.records.base import File
from compress.core.records.training import (
    CalibrationData,
    DecodedValidation,
    Distortion,
    NearDuplicates,
    Prepared,
    StreamingSource,
    TestData,
    TrainingData,
)
from compress.core.store import Context, Stage
from compress.data import open_listing, training_arrays
from compress.data.part_overlap import find_overlap
from compress.data.sources import folder, imagenet
from compress.data.sources.prepare import prepare_data
from compress.data.sources.streamed import decode_listing
from compress.recipe.schema import Data


def run_prepare(config: Data, *, context: Context, fingerprint: str) -> Prepared:
    """Decode the data. `config.root` is absolute here; `fingerprint` stands for the source's content in the key."""
    return prepare_data(config, context.work, base=Path(), report=context.console.line)


PREPARE = Stage("data", 2, run_prepare, Prepared)


def decode_validation(config: None, *, context: Context, data: TrainingData, fingerprint: str) -> DecodedValidation:
    """Decode the validation images of a set that stays in its files, once for all epochs and stages."""
    files, (_, _, _, index) = open_listing(data), training_arrays(data)
    assert files is not None
    return DecodedValidation(
        decode_listing(files, index, context.work / "validation_images.npy", "validation", context.console.line)
    )


DECODE_VALIDATION = Stage("data", 1, decode_validation, DecodedValidation)


def run_find_overlap(config: None, *, context: Context, prepared: Prepared, training: TrainingData) -> NearDuplicates:
    """Count the images that are nearly the same in two parts."""
    return find_overlap(prepared, training, context.work)


FIND_OVERLAP = Stage("data", 2, run_find_overlap, NearDuplicates)


def training(prepared: Prepared, config: Data, held: DecodedValidation | None = None) -> TrainingData:
    """Return what training, strip and convert may read. `held`: validation images of a set that stays in its files."""
    streamed = None
    if prepared.root is not None and prepared.paths is not None:
        streamed = StreamingSource(prepared.root, prepared.paths, held.images if held else None, config.workers)
    return TrainingData(
        images=prepared.train_images,
        labels=prepared.train_labels,
        classes=prepared.classes,
        image_size=prepared.image_size,
        augment=prepared.augment,
        validation=config.validation,
        split_seed=config.split_seed,
        streamed=streamed,
        distortion=_distortion(config),
        shards_at_once=config.shards_at_once,
        labelled=config.labelled,
        groups=prepared.train_groups,
        crop_scale=config.crop_scale,
    )


def _distortion(config: Data) -> Distortion | None:
    """Return the augmentation that the recipe asks for beyond crop and flip."""
    jitter, operations = config.color_jitter, config.rand_augment
    if jitter is None and operations is None:
        return None
    ranges = jitter.model_dump() if jitter is not None else {}
    return Distortion(**ranges, **(operations.model_dump() if operations is not None else {}))


def calibration(prepared: Prepared, config: Data) -> CalibrationData:
    """Return what quantize may read."""
    return CalibrationData(training(prepared, config), config.calibration)


def test(prepared: Prepared) -> TestData:
    """Return the test images, which no stage that trains or chooses receives: see `TestData`."""
    return TestData(
        images=prepared.test_images,
        labels=prepared.test_labels,
        classes=prepared.classes,
        image_size=prepared.image_size,
        groups=prepared.test_groups,
    )


def photos(config: Data, root: Path | None, count: int = 16) -> tuple[File, ...]:
    """Choose image files to decode for timing and on the device, spread over the classes; JPEGs if there are any.

    Args:
        config: The recipe's `data` section.
        root: Its folder.
        count: At most so many.

    Returns:
        The files; none where the source holds arrays.
    """
    if config.source not in ("folder", "imagenet") or root is None or count == 0:
        return ()
    from compress.data import decode  # needs Pillow, which training on arrays does without

    if config.source == "imagenet":
        paths = [root / path for path in imagenet.paths(root, "val")]
    else:
        layout = folder.scan(root, config.labels)
        paths = [root / image.path for image in layout.test or layout.train]
    jpegs = [path for path in paths if path.suffix.lower() in (".jpg", ".jpeg")] or paths
    readable = (path for path in jpegs[:: max(1, len(jpegs) // count)] if decode.is_readable(path))
    return tuple(File.of(path) for path, _ in zip(readable, range(count), strict=False))
