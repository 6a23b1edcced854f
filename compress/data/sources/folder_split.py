"""The training and test parts of a photo folder, decided by the files' content."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compress.core.errors import UsageError
from compress.core.plural import plural
from compress.core.records.warnings import RunWarning
from compress.data import quality_warnings
from compress.data.sources.folder import FolderLayout, ImageFile
from compress.data.splits import allocate

KEY_SIDE = 64  # pixels; side at which images are decoded to be assigned to a part
FEWEST_TEST_IMAGES = 5  # a class with fewer is named


@dataclass(frozen=True)
class FolderSplit:
    """The files of both parts; no content is in both.

    `duplicates` warns about images in two classes, `overlap` about images that were in both parts, `few` about classes
    with few test images.
    """

    train: tuple[ImageFile, ...]
    test: tuple[ImageFile, ...]
    duplicates: tuple[RunWarning, ...]
    overlap: tuple[RunWarning, ...]
    few: tuple[RunWarning, ...] = ()


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


def _content_keys(root: Path, images: tuple[ImageFile, ...]) -> list[str]:
    """Return a hash of every image's pixels, in a small size that no recipe changes; of an unreadable one, its path.

    Of grey images with more than 8 bits it is a hash of the values themselves: their range is that of the whole set.
    """
    from compress.data.decode import DECODE_ERRORS, decode_image, quiet_pillow
    from export.runtime.images import open_image

    def key(image: ImageFile) -> str:
        try:
            with open_image(root / image.path) as opened:
                if opened.mode.startswith(("I", "F")):
                    values = np.ascontiguousarray(np.asarray(opened))
                    return hashlib.sha256(f"{values.shape} {values.dtype.str}".encode() + values.tobytes()).hexdigest()
            return hashlib.sha256(decode_image((root / image.path).read_bytes(), KEY_SIDE).tobytes()).hexdigest()
        except DECODE_ERRORS:
            return f"unreadable {image.path}"

    with quiet_pillow(), ThreadPoolExecutor(min(16, (os.cpu_count() or 1) + 1)) as pool:
        return list(pool.map(key, images, chunksize=1))


def _falls_into_test(key: str, seed: int, share: float) -> bool:
    """Return whether the hash of a key, with the seed, lies below the share of its range."""
    digest = hashlib.sha256(f"{seed} {key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _few_test_images(layout: FolderLayout, test: tuple[ImageFile, ...]) -> list[RunWarning]:
    """Build the warning about classes of which the carved test part has few images."""
    counts = np.bincount([image.label for image in test], minlength=len(layout.classes))
    few = [(int(count), name) for name, count in zip(layout.classes, counts, strict=True) if count < FEWEST_TEST_IMAGES]
    if not few:
        return []
    named = ", ".join(f"{name!r} {count}" for count, name in few[:5]) + (", ..." if few[5:] else "")
    return [
        RunWarning(
            f"{plural(len(few), 'class gets', 'classes get')} fewer than {FEWEST_TEST_IMAGES} test images ({named}); "
            "choose them yourself: put images into test/CLASS and the others into train/CLASS, or name their part in a "
            "column of data.labels",
            affects_verdict=True,
        )
    ]


def split_folder(
    root: Path, layout: FolderLayout, test: float, seed: int, groups: Sequence[str] | None = None
) -> FolderSplit:
    """Split a folder into a training and a test part.

    Whether an image belongs to a carved test part follows from its pixels alone, or from its group's name: images that
    are added later move no other. Training images with the content of a test image are left out.

    Args:
        root: Folder that the layout's paths are relative to.
        layout: What the folder holds.
        test: Share below 1 or number of images to carve off, where the layout has no test part.
        seed: Another seed carves off another part.
        groups: Group of each image of `layout.train`, then of `layout.test`: a group stays in one part.

    Raises:
        UsageError: A class is too small to be in both parts, or the test part would be empty.
    """
    hashes, test_digests = digests(root, layout.train), list[str]()
    if layout.test is None:
        sizes = [
            len({digest for digest, image in zip(hashes, layout.train, strict=True) if image.label == label})
            for label in range(len(layout.classes))
        ]
        count = int(_test_counts(np.array(sizes), test, layout.classes).sum())
        keys = list(groups) if groups is not None else _content_keys(root, layout.train)
        share = test if test < 1 else count / sum(sizes)
        held_out = [_falls_into_test(key, seed, share) for key in keys]
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
    _require_both_parts(root, layout, train, test_part)
    every = zip((*layout.train, *(layout.test or ())), [*hashes, *test_digests], strict=True)
    duplicates = quality_warnings.duplicates_across_classes(
        ((image.path, image.label, digest) for image, digest in every), "bytes"
    )
    overlap = quality_warnings.train_test_overlap(sum(leaked), "bytes", "left out of training", affects_verdict=False)
    few = _few_test_images(layout, test_part) if layout.test is None else []
    return FolderSplit(train, test_part, tuple(duplicates), (overlap,) if any(leaked) else (), tuple(few))


def _require_both_parts(
    root: Path, layout: FolderLayout, train: tuple[ImageFile, ...], test: tuple[ImageFile, ...]
) -> None:
    """Raise UsageError where a class has no training image, or where there is no test image."""
    gone = set(range(len(layout.classes))) - {image.label for image in train}
    if gone and layout.test is not None:
        raise UsageError(
            f"{root}: every training image of class {layout.classes[min(gone)]!r} is in the test part too; give the "
            "parts different images"
        )
    if gone or not test:
        what = f"all images of class {layout.classes[min(gone)]!r} fall" if gone else "no image falls"
        raise UsageError(
            f"data.test: {what} into the test part, which is carved off by a hash of the images or of their groups; "
            "set another data.split_seed, or put test images into test/CLASS and the others into train/CLASS"
        )
