"""How many image files may be unreadable, and what is said about them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from compress.core.errors import StageError
from compress.core.records.training import Unreadable
from compress.core.records.warnings import RunWarning
from compress.data.sources.folder_files import ImageFile

ALWAYS_TOLERATED = 3  # files, or a share of a small set would allow none
MOST_LOST = 0.1  # share of a class's files that may be no images, or unreadable


def accept(share: float) -> str:
    """Return the option that tolerates a share of unreadable files."""
    return f"--set data.max_unreadable={min(0.99, math.ceil(100 * share) / 100):g}"


def judge(
    bad: Sequence[Unreadable], used: Sequence[ImageFile], classes: tuple[str, ...], limit: float
) -> list[RunWarning]:
    """Build the warning about unreadable images, if any.

    Args:
        bad: The unreadable images.
        used: All images that were to be read.
        classes: Class names.
        limit: `data.max_unreadable`; unless it is 0, three files are always tolerated.

    Raises:
        StageError: More are unreadable than is tolerated, or more than a tenth of a class.
    """
    few = "; ".join(f"{image.path}: {image.reason}" for image in bad[:3]) + ("; ..." if len(bad) > 3 else "")
    total = len(used)
    tolerated = max(limit * total, ALWAYS_TOLERATED if limit else 0)
    if len(bad) > tolerated:
        raise StageError(
            f"data: {len(bad)} of {total} images cannot be read, more than data.max_unreadable {limit:g} allows "
            f"({few}); repair or remove them, or leave them out: {accept(len(bad) / total)}"
        )
    label_of = {image.path: image.label for image in used}
    every = Counter(image.label for image in used)
    for label, count in Counter(label_of[image.path] for image in bad).items():
        if label >= 0 and count > max(ALWAYS_TOLERATED, max(MOST_LOST, limit) * every[label]):
            raise StageError(
                f"data: {count} of {every[label]} images of class {classes[label]!r} cannot be read ({few}); repair or "
                f"remove them, or leave them out: {accept(count / every[label])}"
            )
    return [RunWarning(f"{len(bad)} of {total} images cannot be read and are skipped ({few})")] if bad else []


def require_readable_classes(
    root: Path, images: Sequence[ImageFile], labels: list[int], classes: tuple[str, ...], part: str
) -> None:
    """Raise StageError if no image of a class could be read.

    Args:
        root: Folder that paths are relative to.
        images: All images of a part.
        labels: Class numbers of those that could be read.
        classes: Class names.
        part: "train" or "test".
    """
    gone = {image.label for image in images} - set(labels)
    if gone:
        raise StageError(
            f"{root}: none of the {part} images of class {classes[min(gone)]!r} can be read; "
            "repair them, or remove the class"
        )
