"""The range of values of images with more than 8 bits: one for the whole set, from its training part."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from compress.core.plural import plural
from compress.core.records.warnings import RunWarning
from compress.data.decode import quiet_pillow
from compress.data.sources.folder_files import ImageFile
from export.runtime import images

EIGHT_BITS = (b"\xff\xd8\xff", b"GIF8", b"BM")  # how files begin that have no more


def find_range(
    root: Path, train: Sequence[ImageFile], bits: int | None
) -> tuple[images.Range | None, list[RunWarning]]:
    """Return the range that images of more than 8 bits are scaled by, and the sentence that says so.

    Args:
        root: Folder that paths are relative to.
        train: Images of the training part.
        bits: `data.bits`; None: the largest value of the training part, rounded up to a power of two.

    Returns:
        The range; None where no training image has more than 8 bits.
    """
    with quiet_pillow(), ThreadPoolExecutor(min(16, (os.cpu_count() or 1) + 1)) as pool:
        measured = pool.map(lambda image: _extremes(root / image.path, read=bits is None), train)
        found = [values for values in measured if values is not None]
    if not found:
        return None, []
    lowest, highest = min(values[0] for values in found), max(values[1] for values in found)
    whole = all(values[2] for values in found)
    scale = images.rounded_range(lowest, highest, whole=whole) if bits is None else (0.0, 2.0**bits)
    how = "data.bits" if bits is not None else f"the training images reach from {lowest:g} to {highest:g}"
    count = plural(len(found), "training image has", "training images have")
    return scale, [
        RunWarning(f"{count} more than 8 bits; values from {scale[0]:g} to {scale[1]:g} become 0 to 255 ({how})")
    ]


def _extremes(path: Path, *, read: bool) -> tuple[float, float, bool] | None:
    """Return the smallest and largest value of an image of more than 8 bits, and whether its values are whole.

    None for other images, and for those that decoding will report. `read`: whether the values are needed.
    """
    try:
        with path.open("rb") as stream:
            if stream.read(images.HEAD_BYTES).startswith(EIGHT_BITS):
                return None
        with images.open_image(path) as image:
            if not image.mode.startswith(images.HIGH_BIT_MODES):
                return None
            if not read:
                return 0.0, 0.0, True
            values = np.asarray(image)
    except images.BROKEN_FILE_ERRORS:
        return None
    if not np.isfinite(values).all():
        return None
    return float(values.min()), float(values.max()), values.dtype.kind in "iu"
