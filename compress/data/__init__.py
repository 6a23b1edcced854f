"""Data sets as plain arrays, split by purpose. Torch-free; `compress.data.augment.views` turns them into batches on a device.

Nothing before `validate` gets a TestData, so nothing before it can read the test pictures.
"""

from __future__ import annotations

import numpy as np

from compress.core.errors import StageError
from compress.core.records.base import File
from compress.core.records.training import CalibrationData, TestData, TrainingData
from compress.data.splits import calibration_index, carve, stratified
from compress.data.streaming.listing import Listing, ListingSpec

__all__ = [
    "calibration_arrays",
    "calibration_index",
    "carve",
    "centre_crop",
    "validation_images",
    "load_images",
    "load_labels",
    "stratified",
    "test_arrays",
    "training_arrays",
]

MEMORY_MAP_BYTES = 1 << 30  # larger picture files stay on disk and are paged in as they are read


def load_images(file: File) -> np.ndarray:
    """Pictures uint8 (N, S, S, 3) of a prepared file; a large one as a private memory map (writes never reach the file).

    Raises StageError where the file does not hold such pictures.
    """
    images = np.load(file.path, mmap_mode="c" if file.bytes > MEMORY_MAP_BYTES else None, allow_pickle=False)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise StageError(
            f"{file.path}: {images.dtype} {images.shape} are not pictures uint8 (N, S, S, 3); remove the cache entry and run again"
        )
    return images


def load_labels(file: File) -> np.ndarray:
    """Labels int64 (N,) of a prepared file."""
    return np.load(file.path, allow_pickle=False)


def training_arrays(data: TrainingData) -> tuple[np.ndarray | Listing, np.ndarray, np.ndarray, np.ndarray]:
    """(images uint8 (N, S, S, 3), labels int64 (N,), train_index, validation_index); the two indices are sorted and disjoint.

    Images that stay in their files are a listing, which answers positions with pictures as in evaluation.
    """
    files, labels = open_listing(data), load_labels(data.labels)
    images = load_images(data.images) if files is None else files
    train_index, validation_index = carve(labels, data.validation, data.split_seed, data.classes)
    return images, labels, train_index, validation_index


def open_listing(data: TrainingData) -> Listing | None:
    """The training pictures that stay in their files; None where they are decoded."""
    if data.streamed is None:
        return None
    return Listing(ListingSpec(data.streamed.root, data.images.path, data.streamed.paths.path, data.image_size))


def validation_images(data: TrainingData) -> np.ndarray:
    """The validation pictures of a set that stays in its files, uint8 (V, S, S, 3) as in evaluation: decoded beforehand where that was done."""
    if data.streamed is not None and data.streamed.held is not None:
        return load_images(data.streamed.held)
    images, _, _, validation_index = training_arrays(data)
    return centre_crop(images[validation_index], data.image_size)


def calibration_arrays(data: CalibrationData) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8 (n, image_size, image_size, 3) as in evaluation, index int64 (n,) into the training pictures); never validation."""
    images, labels, train_index, _ = training_arrays(data.training)
    index = calibration_index(labels, train_index, data.count, data.training.split_seed)
    return centre_crop(images[index], data.training.image_size), index


def test_arrays(data: TestData) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8 (N, image_size, image_size, 3), labels int64 (N,)) of the final validation."""
    return load_images(data.images), load_labels(data.labels)


def centre_crop(images: np.ndarray, size: int) -> np.ndarray:
    """The middle size x size pixels of pictures (N, S, S, 3), S >= size: a view."""
    offset = (images.shape[1] - size) // 2
    return images[:, offset : offset + size, offset : offset + size]
