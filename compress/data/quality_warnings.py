"""Warnings about a data set. The data stage keeps them in its result, so that every run reports them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from compress.core.plural import agree, plural
from compress.core.records.warnings import RunWarning

LOOKED_AT = 1000  # images of each part
SLIGHT_SPREAD = 4.0  # standard deviation, of 255, of an image that shows nothing
MOST_BLANK = 0.02  # share of such images that needs no warning


def train_test_overlap(count: int, what: str, then: str, *, affects_verdict: bool) -> RunWarning:
    """Build the warning that training images are also test images.

    Args:
        count: How many training images are also in the test part.
        what: What is compared: "bytes" or "pixels".
        then: What is done about it.
        affects_verdict: Whether the copies stay, so that the test accuracy may be too high.
    """
    overlap = f"{plural(count, 'training image')} {agree(count, 'is', 'are')} also in the test part (same {what})"
    return RunWarning(f"{overlap}; {then}", affects_verdict)


def duplicates_across_classes(images: Iterable[tuple[str, int, object]], what: str) -> list[RunWarning]:
    """Build the warning that images are in two classes; returns an empty list if none is.

    Args:
        images: Name, class number (-1: unlabelled) and content (or its hash) of each image.
        what: What is compared: "bytes" or "pixels".
    """
    first: dict[object, tuple[str, int]] = {}
    pairs: dict[object, str] = {}
    for name, label, content in images:
        if label < 0:
            continue
        other, known = first.setdefault(content, (name, label))
        if known != label:
            pairs.setdefault(content, f"{other} and {name}")
    if not pairs:
        return []
    shown = next(iter(pairs.values()))
    duplicates = f"{plural(len(pairs), 'image')} {agree(len(pairs), 'is', 'are')} in two classes"
    return [RunWarning(f"{duplicates} with the same {what} (first: {shown})", affects_verdict=True)]


def blank_images(arrays: Iterable[np.ndarray]) -> list[RunWarning]:
    """Build the warnings that many images are nearly black, nearly white or of one value.

    Args:
        arrays: Images uint8 (N, S, S, 3) of each part; some of them are looked at.
    """
    found: Counter[str] = Counter()
    total = 0
    for images in arrays:
        looked_at = images[:: max(1, len(images) // LOOKED_AT)]
        total += len(looked_at)
        for image in looked_at:
            mean, spread = image.mean(), image.std()
            if spread < SLIGHT_SPREAD:
                found["nearly black" if mean < 16 else "nearly white" if mean > 239 else "nearly of one value"] += 1
    return [
        RunWarning(
            f"{count:,} of {total:,} images looked at are {what}; see whether they are read as they should be",
            affects_verdict=2 * count > total,
        )
        for what, count in found.items()
        if count > MOST_BLANK * total
    ]


def classes_without_images(classes: tuple[str, ...], train: np.ndarray, test: np.ndarray) -> list[RunWarning]:
    """Build a warning for each part in which classes have no images.

    Args:
        classes: Class names.
        train: Labels of the training part, int64 (N,), -1 for an unlabelled image. The validation part has images of
            the same classes.
        test: Labels of the test part, int64 (M,).
    """
    found = []
    for parts, labels in (("training or validation", train), ("test", test)):
        counts = np.bincount(labels[labels >= 0], minlength=len(classes))
        gone = [repr(name) for name, count in zip(classes, counts, strict=True) if not count]
        if len(gone) == 1:
            found.append(f"class {gone[0]} has no {parts} images")
        elif gone:
            first = f"{', '.join(gone[:3])}{', ...' if gone[3:] else ''}"
            found.append(f"{len(gone)} classes have no {parts} images: {first}")
    return [RunWarning(text, affects_verdict=True) for text in found]
