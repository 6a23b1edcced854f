"""The training and test parts of a photo folder, decided by the files' content."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compress.core.errors import UsageError
from compress.core.records.warnings import RunWarning
from compress.data import quality_warnings
from compress.data.sources.folder import FolderLayout, ImageFile
from compress.data.splits import allocate


@dataclass(frozen=True)
class FolderSplit:
    """The files of both parts; no content is in both.

    `duplicates` warns about images in two classes, `overlap` about images that were in both parts.
    """

    train: tuple[ImageFile, ...]
    test: tuple[ImageFile, ...]
    duplicates: tuple[RunWarning, ...]
    overlap: tuple[RunWarning, ...]


def _digest(root: Path, image: ImageFile) -> str:
    """Hash a file's bytes; a file that is empty or cannot be read counts by its path, and decoding reports it."""
    try:
        content = (root / image.path).read_bytes()
    except OSError:
        content = b""
    return hashlib.sha256(content).hexdigest() if content else f"unreadable {image.path}"


def digests(root: Path, images: tuple[ImageFile, ...]) -> list[str]:
    """Return the sha256 of every file's bytes, in order."""
    with ThreadPoolExecutor(min(16, (os.cpu_count() or 1) + 1)) as pool:
        return list(pool.map(lambda image: _digest(root, image), images, chunksize=1))


def _test_counts(sizes: np.ndarray, test: float, classes: tuple[str, ...]) -> np.ndarray:
    """Return how many of each class's distinct images (G,) the test part takes.

    Raises UsageError if a class would be in one part only.
    """
    if sizes.min() < 2:
        raise UsageError(
            f"data.test: class {classes[sizes.argmin()]!r} has only one distinct image, so no test part can be carved "
            "off; add images of it"
        )
    count = max(round(sizes.sum() * test), len(classes)) if test < 1 else int(test)
    if not len(classes) <= count <= sizes.sum() - len(classes):
        raise UsageError(
            f"data.test: {test} of {sizes.sum()} distinct images cannot hold every one of {len(classes)} classes in "
            f"both parts; choose between {len(classes)} and {sizes.sum() - len(classes)} images"
        )
    return allocate(sizes, count, least=1, leave=1)


def training_labels(layout: FolderLayout, test: float) -> np.ndarray:
    """Return the labels of the training part, int64 (N,), as if all files had different content.

    Raises:
        UsageError: No test part can be carved off.
    """
    labels = np.array([image.label for image in layout.train], dtype=np.int64)
    if layout.test is not None:
        return labels
    sizes = np.bincount(labels, minlength=len(layout.classes))
    return np.repeat(np.arange(len(sizes), dtype=np.int64), sizes - _test_counts(sizes, test, layout.classes))


def _carve_test(
    labels: np.ndarray, test: float, hashes: list[str], seed: int, classes: tuple[str, ...]
) -> set[tuple[int, str]]:
    """Choose the contents (label, hash) of the test part: in each class the lowest of sha256(seed, content)."""
    contents = [
        sorted({digest for digest, other in zip(hashes, labels, strict=True) if other == label})
        for label in range(len(classes))
    ]
    chosen = set()
    counts = _test_counts(np.array([len(group) for group in contents]), test, classes)
    for label, (group, count) in enumerate(zip(contents, counts, strict=True)):
        ranked = sorted(group, key=lambda digest: hashlib.sha256(f"{seed} {digest}".encode()).hexdigest())
        chosen |= {(label, digest) for digest in ranked[:count]}
    return chosen


def split_folder(root: Path, layout: FolderLayout, test: float, seed: int) -> FolderSplit:
    """Split a folder into a training and a test part.

    A carved test part follows from the content of the files, not from their names. Training images with the content
    of a test image are left out.

    Args:
        root: Folder that the layout's paths are relative to.
        layout: What the folder holds.
        test: Share below 1 or number of images to carve off, where the layout has no test part.
        seed: The carved part follows from the seed.

    Raises:
        UsageError: A class is too small to be in both parts.
    """
    hashes, test_digests = digests(root, layout.train), list[str]()
    if layout.test is None:
        labels = np.array([image.label for image in layout.train])
        chosen = _carve_test(labels, test, hashes, seed, layout.classes)
        held_out = [(image.label, digest) in chosen for image, digest in zip(layout.train, hashes, strict=True)]
        test_part = tuple(image for image, held in zip(layout.train, held_out, strict=True) if held)
        test_hashes = {digest for digest, held in zip(hashes, held_out, strict=True) if held}
    else:
        held_out = [False] * len(layout.train)
        test_part = layout.test
        test_digests = digests(root, layout.test)
        test_hashes = set(test_digests)
    leaked = [digest in test_hashes and not held for digest, held in zip(hashes, held_out, strict=True)]
    train = tuple(
        image for image, held, leak in zip(layout.train, held_out, leaked, strict=True) if not held and not leak
    )
    gone = set(range(len(layout.classes))) - {image.label for image in train}
    if gone:
        raise UsageError(
            f"{root}: every training image of class {layout.classes[min(gone)]!r} is in the test part too; give the "
            "parts different images"
        )
    every = zip((*layout.train, *(layout.test or ())), [*hashes, *test_digests], strict=True)
    duplicates = quality_warnings.duplicates_across_classes(
        ((image.path, image.label, digest) for image, digest in every), "bytes"
    )
    overlap = quality_warnings.train_test_overlap(sum(leaked), "bytes", "left out of training", affects_verdict=False)
    return FolderSplit(train, test_part, tuple(duplicates), (overlap,) if any(leaked) else ())
