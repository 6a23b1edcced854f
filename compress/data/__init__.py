"""Prepared data sets as plain NumPy arrays, split by purpose.

Torch-free: `compress.data.augment.views` turns the arrays into batches on a device. No stage before
`validate` receives a `TestData`, so nothing is trained or chosen on the test images.
"""

from __future__ import annotations

import numpy as np

from compress.core.errors import StageError
from compress.core.records.base import File
from compress.core.records.training import CalibrationData, TestData, TrainingData
from compress.data.splits import calibration_index, carve, split_labelled, stratified
from compress.data.streaming.listing import Listing, ListingSpec

__all__ = [
    "calibration_arrays",
    "calibration_index",
    "carve",
    "centre_crop",
    "load_groups",
    "load_images",
    "load_labels",
    "open_listing",
    "split_labelled",
    "split_of",
    "stratified",
    "test_arrays",
    "training_arrays",
    "validation_images",
]

# Larger image files stay on disk and are paged in as they are read.
MEMORY_MAP_BYTES = 1 << 30


def load_images(file: File) -> np.ndarray:
    """Load the images of a prepared file, uint8 (N, S, S, 3).

    A large file becomes a private memory map: writes to it never reach the file.

    Raises:
        StageError: The file does not hold such images.
    """
    images: np.ndarray = np.load(
        file.path, mmap_mode="c" if file.bytes > MEMORY_MAP_BYTES else None, allow_pickle=False
    )
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise StageError(
            f"{file.path}: {images.dtype} {images.shape} are not images uint8 (N, S, S, 3); "
            "remove the cache entry and run again"
        )
    return images


def load_labels(file: File) -> np.ndarray:
    """Load the labels of a prepared file, int64 (N,)."""
    labels: np.ndarray = np.load(file.path, allow_pickle=False)
    return labels


def load_groups(file: File) -> np.ndarray:
    """Load the group of each image, str (N,)."""
    groups: np.ndarray = np.load(file.path, allow_pickle=False)
    return groups


def split_of(data: TrainingData) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels, train_index and validation_index, see `training_arrays`, without reading any image."""
    groups = None if data.groups is None else load_groups(data.groups)
    return split_labelled(
        load_labels(data.labels), data.validation, data.split_seed, data.labelled, data.classes, groups, data.fold
    )


def training_arrays(data: TrainingData) -> tuple[np.ndarray | Listing, np.ndarray, np.ndarray, np.ndarray]:
    """Load the training part and split off its validation part.

    Returns:
        images: uint8 (N, S, S, 3), or a `Listing` where the images stay in their files. Indexing a listing decodes
            the images as for evaluation.
        labels: int64 (N,), -1 for an unlabelled image.
        train_index: Labelled images, sorted int64, disjoint from validation_index.
        validation_index: Sorted int64.
    """
    listing = open_listing(data)
    images = load_images(data.images) if listing is None else listing
    return images, *split_of(data)


def open_listing(data: TrainingData) -> Listing | None:
    """Open the listing of training images that stay in their files; None if they are decoded."""
    if data.streamed is None:
        return None
    return Listing(ListingSpec(data.streamed.root, data.images.path, data.streamed.paths.path, data.image_size))


def validation_images(data: TrainingData) -> np.ndarray:
    """Return the validation images as for evaluation, uint8 (V, S, S, 3); from disk if they were decoded before."""
    if data.streamed is not None and data.streamed.held is not None:
        return load_images(data.streamed.held)
    images, _, _, validation_index = training_arrays(data)
    return centre_crop(images[validation_index], data.image_size)


def calibration_arrays(data: CalibrationData) -> tuple[np.ndarray, np.ndarray]:
    """Draw the images that set the int8 ranges, never from the validation part.

    Returns:
        images: uint8 (n, image_size, image_size, 3), as for evaluation.
        index: int64 (n,), their positions in the training part.
    """
    images, labels, train_index, _ = training_arrays(data.training)
    index = calibration_index(labels, train_index, data.count, data.training.split_seed)
    return centre_crop(images[index], data.training.image_size), index


def test_arrays(data: TestData) -> tuple[np.ndarray, np.ndarray]:
    """Load the test part: images uint8 (N, image_size, image_size, 3) and labels int64 (N,)."""
    return load_images(data.images), load_labels(data.labels)


def centre_crop(images: np.ndarray, size: int) -> np.ndarray:
    """Return a view of the middle size x size pixels of images (N, S, S, 3), S >= size."""
    offset = (images.shape[1] - size) // 2
    return images[:, offset : offset + size, offset : offset + size]
