"""The user's own arrays in one `.npz` file: train_images, train_labels, test_images, test_labels, class_names."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from compress.core.errors import MissingError, UsageError

KEYS = ("train_images", "train_labels", "test_images", "test_labels", "class_names")


def require(path: Path) -> None:
    """Raise MissingError if there is no such file."""
    if not path.is_file():
        raise MissingError(
            f"data.root: {path} is not a file; name the .npz that holds {', '.join(KEYS)}: "
            "compress run RECIPE --set data.root=FILE.npz"
        )


def content_stamp(path: Path) -> list[tuple[str, int, int]]:
    """Return name, bytes and CRC-32 of every array in the file: its identity without reading the pixels.

    Raises:
        MissingError: There is no such file.
        UsageError: The file is not an .npz.
    """
    require(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return sorted((entry.filename, entry.file_size, entry.CRC) for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError) as error:
        raise UsageError(f"{path}: not an .npz file ({error}); write it with numpy.savez") from error


def load(path: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Load train_images, test_images uint8 (N, H, W, 3), train_labels, test_labels int64 (N,), and the class names.

    Raises:
        MissingError: There is no such file.
        UsageError: A key is missing, a type or shape is wrong, or labels are out of range.
    """
    with _opened(path) as stored:
        return validate(path, {key: stored[key] for key in KEYS})


def read_labels(path: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Load train_labels, test_labels int64 (N,) and the class names of a file that `load` accepts.

    The images are checked by their headers, not read. Raises what `load` raises.
    """
    with _opened(path) as stored:
        counts = {}
        for part in ("train", "test"):
            dtype, shape = _header(path, f"{part}_images", stored)
            _require_images(path, f"{part}_images", dtype, shape)
            counts[part] = shape[0]
        return _labels_and_classes(path, stored, counts)


def validate(path: Path, stored: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Check the arrays under their five keys and bring them to the form of `load`.

    Raises:
        UsageError: The first thing that is wrong.
    """
    arrays = {f"{part}_images": _images(path, f"{part}_images", stored[f"{part}_images"]) for part in ("train", "test")}
    counts = {part: len(arrays[f"{part}_images"]) for part in ("train", "test")}
    labels, classes = _labels_and_classes(path, stored, counts)
    return {**arrays, **labels}, classes


@contextmanager
def _opened(path: Path) -> Iterator[Mapping[str, np.ndarray]]:
    """Open the file for reading its arrays on demand. Raises UsageError for a file that is not an .npz of arrays."""
    require(path)
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            absent = [key for key in KEYS if key not in stored]
            if absent:
                raise UsageError(f"{path}: no {' and no '.join(absent)}; the file needs {', '.join(KEYS)}")
            yield stored
    # ValueError: pickled objects or a damaged array; AttributeError, TypeError: a single .npy array, not an archive.
    except (zipfile.BadZipFile, ValueError, LookupError, EOFError, AttributeError, TypeError) as error:
        raise UsageError(
            f"{path}: cannot be read as an .npz of plain arrays ({error}); "
            "write it with numpy.savez, class_names as strings"
        ) from error


def _header(path: Path, key: str, stored: Mapping[str, np.ndarray]) -> tuple[np.dtype[np.generic], tuple[int, ...]]:
    """Return type and shape of an array; its values are read only if its header has a form that images never need."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as stream:
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(
            np.lib.format.read_magic(stream)
        )
        if read is None:
            return stored[key].dtype, stored[key].shape
        shape, _, dtype = read(stream)
    return dtype, shape


def _require_images(path: Path, key: str, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> None:
    full = (*shape, 1) if len(shape) == 3 else shape
    if dtype != np.uint8 or len(full) != 4 or full[3] not in (1, 3) or min(full) < 1:
        raise UsageError(
            f"{path}: {key} is {dtype} {'x'.join(map(str, full))}, but images are uint8 (N, H, W), (N, H, W, 1) or "
            "(N, H, W, 3), N at least 1"
        )


def _images(path: Path, key: str, images: np.ndarray) -> np.ndarray:
    """Return images as uint8 (N, H, W, 3)."""
    _require_images(path, key, images.dtype, images.shape)
    if images.ndim == 3:
        images = images[..., None]
    return images if images.shape[3] == 3 else np.repeat(images, 3, axis=3)


def _labels(path: Path, key: str, labels: np.ndarray, count: int, classes: int) -> np.ndarray:
    """Return labels as int64 (N,); only training images may be unlabelled (-1)."""
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise UsageError(
            f"{path}: {key} is {labels.dtype} {labels.shape}, but {count} images need integers of shape ({count},)"
        )
    least = -1 if key == "train_labels" else 0
    if labels.min() < least or labels.max() >= classes:
        unlabelled = ", and -1 for an unlabelled image" if least else ""
        raise UsageError(
            f"{path}: {key} holds {labels.min()} to {labels.max()}, but {classes} class_names allow 0 to {classes - 1}"
            f"{unlabelled}"
        )
    return labels.astype(np.int64)


def _class_names(path: Path, names: np.ndarray) -> tuple[str, ...]:
    if names.ndim != 1 or names.dtype.kind not in "US" or len(names) < 2:
        raise UsageError(
            f"{path}: class_names is {names.dtype} {names.shape}, but it must list at least two names as strings"
        )
    text = tuple(name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in names.tolist())
    if "" in text:
        raise UsageError(
            f"{path}: class_names holds an empty name; every class needs one, because reports and devices show it"
        )
    if len(set(text)) < len(text):
        twice = next(name for name in text if text.count(name) > 1)
        raise UsageError(f"{path}: class_names holds {twice!r} twice; every class needs its own name")
    return text


def _labels_and_classes(
    path: Path, stored: Mapping[str, np.ndarray], counts: Mapping[str, int]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Return the labels of both parts, and the class names; `counts` are the images of each part."""
    classes = _class_names(path, stored["class_names"])
    labels = {
        f"{part}_labels": _labels(path, f"{part}_labels", stored[f"{part}_labels"], count, len(classes))
        for part, count in counts.items()
    }
    present = np.unique(labels["train_labels"])
    present = present[present >= 0]
    if len(present) == 0:
        raise UsageError(f"{path}: no training image has a label; label some of each class")
    unseen = np.setdiff1d(labels["test_labels"], present)
    if len(unseen):
        raise UsageError(
            f"{path}: class {classes[unseen[0]]!r} has test images but no training images; "
            "add some, or remove the class"
        )
    if len(present) < 2:
        raise UsageError(
            f"{path}: all training images are of class {classes[present[0]]!r}; a classifier needs at least two classes"
        )
    return labels, classes
