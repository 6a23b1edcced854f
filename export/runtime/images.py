"""Open image files: the one place that does, for training as on the device.

A file is recognised by its content. Only formats that Pillow decodes by itself are opened: PostScript would start
Ghostscript, and others another program. An image is turned upright, and brought to 8 bits RGB.
Standard library and numpy, Pillow only when a file is opened; runs on Python 3.8, because it travels in the bundle.
"""

from __future__ import annotations

import io
import math
import re
import struct
import threading
import zlib
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterator, Optional, Tuple, Union

import numpy as np

# Formats of Pillow that start no program. The last three have no mark at their beginning or a weak one.
FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "JPEG2000", "QOI", "DDS", "ICO", "ICNS", "PSD"),
    *("SGI", "SUN", "PCX", "DCX", "DIB", "XBM", "XPM", "MSP", "FITS", "TGA"),
)
# Suffixes of files that are taken for images before they are opened.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jp2", ".j2k", ".qoi", ".mpo", ".tga", ".pcx", ".dcx", ".sgi", ".xbm"),
    *(".msp", ".fits"),
)
HEIF_SUFFIXES = (".heic", ".heif", ".hif")
HEIF_PACKAGE = "pillow-heif"
# How files of these formats begin.
_MARKS = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    *(b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51", b"qoif", b"DDS ", b"icns", b"8BPS", b"\x01\xda"),
    *(b"\x59\xa6\x6a\x95", b"/* XPM */", b"\0\0\1\0"),
)
_PORTABLE = re.compile(rb"P[1-6Ff]\s+[-#0-9]")  # the family of PPM
_BMP = re.compile(rb"BM.{4}\0{4}.{4}[\x0c\x28\x34\x38\x40\x6c\x7c]\0{3}", re.DOTALL)
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
HEAD_BYTES = 32

MAX_PIXELS = 178_956_970  # of an image as it is decoded; Pillow refuses more by itself
MAX_JPEG_PIXELS = 400_000_000  # of a JPEG file, which can be decoded at a fraction of its size
LARGE_PIXELS = 50_000_000  # such images are decoded one at a time, or threads would fill the memory

# Key of a contract's decoding step: the range of values of images of more than 8 bits.
VALUES = "values_of_high_bits"
EXIF_ORIENTATION = 0x0112
TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
HIGH_BIT_MODES = ("I", "F")  # how the names of Pillow's modes of more than 8 bits begin

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
    AttributeError,
    NotImplementedError,
    struct.error,
    zlib.error,
    MemoryError,
)

Content = Union[bytes, str, Path, BinaryIO]
# Of images of more than 8 bits: the value of black, and the first value above white.
Range = Tuple[float, float]

_one_large_image = threading.Lock()


class UnreadableImage(ValueError):
    """A file that is not opened; the message is the reason, without the file's name."""


def is_heif(head: bytes) -> bool:
    """Return whether a file that begins with `head` is a HEIC or HEIF image."""
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS and b"avif" not in head


def looks_like_image(head: bytes) -> bool:
    """Return whether a file that begins with `head`, HEAD_BYTES long, is an image that `open_image` may open.

    HEIF counts where its package is installed.
    """
    if head[4:8] == b"ftyp":
        return b"avif" in head or b"avis" in head or (is_heif(head) and heif_is_installed())
    if head[:4] == b"RIFF":
        return head[8:12] == b"WEBP"
    return head.startswith(_MARKS) or bool(_PORTABLE.match(head) or _BMP.match(head))


def heif_is_installed() -> bool:
    """Return whether the optional package for HEIC images is there."""
    try:
        import pillow_heif  # noqa: F401
    except ImportError:
        return False
    return True


def _formats(head: bytes) -> list[str]:
    """Return the formats that this Pillow can open. Raises UnreadableImage for HEIF without its package."""
    from PIL import Image

    Image.init()
    if is_heif(head):
        if not heif_is_installed():
            raise UnreadableImage(f"a HEIC image; to read it: pip install {HEIF_PACKAGE}")
        import pillow_heif

        pillow_heif.register_heif_opener()
        return ["HEIF"]
    return [name for name in FORMATS if name in Image.OPEN]


@contextmanager
def open_image(content: Content) -> Iterator[Any]:
    """Open an image file by its content; nothing but its header is read yet.

    Args:
        content: The file's bytes, its path, or a binary stream.

    Yields:
        Pillow's image. Of a file with several frames it is the first.

    Raises:
        UnreadableImage: It is no image of FORMATS, or has too many pixels. One of BROKEN_FILE_ERRORS may be raised for
            a broken file.
    """
    from PIL import Image, JpegImagePlugin, UnidentifiedImageError

    with ExitStack() as stack:
        if isinstance(content, (str, Path)):
            stream: BinaryIO = stack.enter_context(open(content, "rb"))
        else:
            stream = io.BytesIO(content) if isinstance(content, bytes) else content
        head = stream.read(HEAD_BYTES)
        stream.seek(0)
        if not head:
            raise UnreadableImage("the file is empty")
        is_jpeg = head.startswith(b"\xff\xd8\xff")
        most = MAX_JPEG_PIXELS if is_jpeg else MAX_PIXELS
        try:
            if is_jpeg:  # Image.open would refuse a large one before its size can be reduced
                image: Any = stack.enter_context(JpegImagePlugin.jpeg_factory(stream, ""))
            else:
                image = stack.enter_context(Image.open(stream, formats=_formats(head)))
        except (UnidentifiedImageError, SyntaxError) as error:
            raise UnreadableImage(_why_not(head)) from error
        except Image.DecompressionBombError as error:
            raise UnreadableImage(_too_large(most)) from error
        if image.width * image.height > most:
            raise UnreadableImage(_too_large(most))
        yield image


def _why_not(head: bytes) -> str:
    if head.startswith((b"%!PS", b"\xc5\xd0\xd3\xc6")):
        return "PostScript, which is not opened: it would be run as a program"
    return "not an image that Pillow can read"


def _too_large(most: int) -> str:
    return f"more than {most // 1_000_000} megapixels"


def is_transposed(image: Any) -> bool:
    """Return whether the image's EXIF orientation exchanges width and height."""
    try:
        return image.getexif().get(EXIF_ORIENTATION) in TRANSPOSED
    except BROKEN_FILE_ERRORS:
        return False


def to_upright_rgb(image: Any, at_least: tuple[int, int], *, scale: Range | None = None, upright: bool = True) -> Any:
    """Decode an opened image: 8 bits, RGB, turned upright by its EXIF orientation, transparency on white.

    Args:
        image: Of `open_image`.
        at_least: Width and height that are needed: a JPEG is decoded at 1/2, 1/4 or 1/8 if it keeps so many pixels.
        scale: Range of values of an image of more than 8 bits; None: 16 bits.
        upright: False ignores the orientation.
    """
    from PIL import ImageOps

    if is_transposed(image):
        at_least = at_least[::-1]
    whole = image.width * image.height
    if whole > MAX_PIXELS:
        at_least = (min(at_least[0], image.width // 2), min(at_least[1], image.height // 2))
    image.draft(None, at_least)
    decoded = image.width * image.height
    if decoded > MAX_PIXELS:
        raise UnreadableImage(_too_large(MAX_PIXELS))
    large = (whole if image.info.get("progressive") else decoded) > LARGE_PIXELS
    with _one_large_image if large else _no_lock():
        image.load()
        turned = image
        if upright:
            try:
                turned = ImageOps.exif_transpose(image)
            except BROKEN_FILE_ERRORS:  # its pixels are whole: only what EXIF says is broken
                turned = image.copy()
        return to_rgb(turned, scale)


@contextmanager
def _no_lock() -> Iterator[None]:
    yield


def to_rgb(image: Any, scale: Range | None = None) -> Any:
    """Convert an image of any mode to RGB: more than 8 bits are scaled to 8, transparency is put on white.

    Args:
        image: Pillow's image.
        scale: Range of values of an image of more than 8 bits; None: 16 bits.

    Raises:
        UnreadableImage: Values are not finite.
    """
    from PIL import Image

    if image.mode.startswith(HIGH_BIT_MODES):
        low, high = scale or (0, 65536)
        values = np.asarray(image).astype(np.float64)
        if not np.isfinite(values).all():
            raise UnreadableImage("some of its values are not finite numbers")
        levels = np.floor((values - low) * (256 / (high - low)))
        return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def value_range(preprocessing: Optional[Dict[str, Any]]) -> Range | None:
    """Return the range of images of more than 8 bits that a contract's `preprocessing` names, or None."""
    for step in (preprocessing or {}).get("steps", ()):
        if VALUES in step:
            low, high = step[VALUES]
            return float(low), float(high)
    return None


def rounded_range(lowest: float, highest: float, *, whole: bool) -> Range:
    """Return the range of values from `lowest` to `highest`, rounded up to powers of two.

    Args:
        lowest: Black is 0, or where this is negative the next power of two below it.
        highest: White is the next power of two.
        whole: Whether the values are whole numbers: then 4096 needs 13 bits, and 4095 has 12.
    """
    most = highest + 1 if whole else highest
    white = 2.0 ** math.ceil(math.log2(most)) if most > 0 else 1.0
    return (-(2.0 ** math.ceil(math.log2(-lowest))) if lowest < 0 else 0.0), white
