"""Image files decoded to square RGB arrays, in threads. Needs Pillow.

Files are opened by `export.runtime.images`, as `augment/crops.py` and `export/runtime/photos.py` do; all three must
resize alike. A file that cannot be read is reported by name and never stops the decoding of the others.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from compress.core.records.training import Unreadable
from export.runtime import images

CHUNK = 256  # images decoded before they are handed on
PROGRESS_SECONDS = 5.0

DECODE_ERRORS = (*images.BROKEN_FILE_ERRORS, Image.DecompressionBombError)


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Silence Pillow's warnings, such as those about large images and broken EXIF."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def decode_image(content: bytes, size: int, scale: images.Range | None = None) -> np.ndarray:
    """Decode a file's bytes to uint8 (size, size, 3).

    The image is turned upright by its EXIF orientation, its short side is resized to `size` (bilinear, antialiased),
    and the centre is cropped. `scale`: the range of values of an image of more than 8 bits; None: 16 bits. Raises one
    of DECODE_ERRORS on a broken file.
    """
    with images.open_image(content) as image:
        # A JPEG is decoded at 1/2, 1/4 or 1/8 as long as twice the size is left: far less work for large photos.
        upright = images.to_upright_rgb(image, (2 * size, 2 * size), scale=scale)
    return resize_square(upright, size)


def resize_square(image: Image.Image, size: int) -> np.ndarray:
    """Resize the short side to `size` (bilinear, antialiased) and crop the centre: uint8 (size, size, 3).

    Only the pixels that remain are computed.
    """
    short = min(image.size)
    if image.size == (size, size):
        return np.asarray(image)
    left, top = (image.width - short) / 2, (image.height - short) / 2
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + short, top + short)))


def failure_reason(error: BaseException) -> str:
    """Return why an image could not be read, without memory addresses, so that two runs report the same."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


def _read(root: Path, name: str, size: int, scale: images.Range | None = None) -> np.ndarray | Unreadable:
    try:
        content = (root / name).read_bytes()
        return decode_image(content, size, scale)
    except DECODE_ERRORS as error:
        return Unreadable(name, failure_reason(error))


def is_readable(path: Path) -> bool:
    """Return whether an image file can be decoded."""
    return isinstance(_read(path.parent, path.name, 32), np.ndarray)


def decode_all(
    root: Path,
    names: list[str],
    size: int,
    report: Callable[[str], None],
    what: str,
    scale: images.Range | None = None,
) -> Iterator[tuple[int, np.ndarray | Unreadable]]:
    """Decode the files root/name in order and report progress every few seconds.

    Args:
        root: Folder that the names are relative to.
        names: Files to decode.
        size: Side of the decoded images, in pixels.
        report: Receives one progress line at a time.
        what: Adjective for the progress line, such as "train".
        scale: Range of values of images of more than 8 bits; None: 16 bits.

    Yields:
        The position in `names` and the image, uint8 (size, size, 3), or why it is unreadable.
    """
    reported = time.monotonic()
    with quiet_pillow(), ThreadPoolExecutor(min(16, (os.cpu_count() or 1) + 1)) as pool:
        for start in range(0, len(names), CHUNK):
            chunk = names[start : start + CHUNK]
            yield from enumerate(pool.map(lambda name: _read(root, name, size, scale), chunk), start)
            if time.monotonic() - reported > PROGRESS_SECONDS:
                reported = time.monotonic()
                report(f"data: decoded {start + len(chunk):,} of {len(names):,} {what} images")
