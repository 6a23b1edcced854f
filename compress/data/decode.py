"""Image files decoded to square RGB arrays, in threads. Needs Pillow.

`augment/crops.py` and `export/runtime/photos.py` must decode alike: EXIF orientation, colours, and the resize.
A file that cannot be read is reported by name and never stops the decoding of the others.
"""

from __future__ import annotations

import io
import os
import struct
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from compress.core.records.training import Unreadable

CHUNK = 256  # images decoded before they are handed on
PROGRESS_SECONDS = 5.0

# What Pillow raises on broken files: it documents OSError and SyntaxError, and its parsers let the others through.
BROKEN_FILE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
    MemoryError,
)
DECODE_ERRORS = (*BROKEN_FILE_ERRORS, Image.DecompressionBombError, Image.DecompressionBombWarning)


@contextmanager
def strict_pillow() -> Iterator[None]:
    """Turn Pillow's warning about absurdly large images into an error and silence its other warnings."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB: 16-bit grey is scaled to 8 bits, transparency is put on white."""
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        return Image.fromarray((np.clip(grey, 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def decode_image(content: bytes, size: int) -> np.ndarray:
    """Decode a file's bytes to uint8 (size, size, 3).

    The image is turned upright by its EXIF orientation, its short side is resized to `size` (bilinear, antialiased),
    and the centre is cropped. Raises one of DECODE_ERRORS on a broken file.
    """
    with Image.open(io.BytesIO(content)) as image:
        # A JPEG is decoded at 1/2, 1/4 or 1/8 as long as twice the size is left: far less work for large photos.
        image.draft(None, (2 * size, 2 * size))
        upright = to_rgb(ImageOps.exif_transpose(image))
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
    if isinstance(error, UnidentifiedImageError):
        return "not an image that Pillow can read"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"more than {Image.MAX_IMAGE_PIXELS} pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


def _read(root: Path, name: str, size: int) -> np.ndarray | Unreadable:
    try:
        content = (root / name).read_bytes()
        return decode_image(content, size) if content else Unreadable(name, "the file is empty")
    except DECODE_ERRORS as error:
        return Unreadable(name, failure_reason(error))


def is_readable(path: Path) -> bool:
    """Return whether an image file can be decoded."""
    return isinstance(_read(path.parent, path.name, 32), np.ndarray)


def decode_all(
    root: Path, names: list[str], size: int, report: Callable[[str], None], what: str
) -> Iterator[tuple[int, np.ndarray | Unreadable]]:
    """Decode the files root/name in order and report progress every few seconds.

    Args:
        root: Folder that the names are relative to.
        names: Files to decode.
        size: Side of the decoded images, in pixels.
        report: Receives one progress line at a time.
        what: Adjective for the progress line, such as "train".

    Yields:
        The position in `names` and the image, uint8 (size, size, 3), or why it is unreadable.
    """
    reported = time.monotonic()
    with strict_pillow(), ThreadPoolExecutor(min(16, (os.cpu_count() or 1) + 1)) as pool:
        for start in range(0, len(names), CHUNK):
            chunk = names[start : start + CHUNK]
            yield from enumerate(pool.map(lambda name: _read(root, name, size), chunk), start)
            if time.monotonic() - reported > PROGRESS_SECONDS:
                reported = time.monotonic()
                report(f"data: decoded {start + len(chunk):,} of {len(names):,} {what} images")
