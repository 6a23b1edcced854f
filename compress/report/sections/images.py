"""Test images that the teacher gets right and the student wrong."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from compress.report.read import Source

MOST_IMAGES = 24
# Pixels; smaller images are kept as they are and enlarged by the browser.
THUMBNAIL = 112
SMALL = 64


@dataclass(frozen=True)
class LostImage:
    """One image with the right class and the student's. `src`: a data URI."""

    src: str
    alt: str
    small: bool
    label: str
    student: str
    note: str = ""


@dataclass(frozen=True)
class LostImagesView:
    """The images, and how many more there are."""

    images: Sequence[LostImage]
    more: str


def lost_images(source: Source) -> LostImagesView | None:
    """Build the gallery of the images that the shipped student lost; None where there is none."""
    found = source.images
    if not found or not len(found["images"]):
        return None
    rows = list(zip(found["images"], found["labels"], found["student"], strict=True))[:MOST_IMAGES]
    images = [lost_image(source, *row) for row in rows]
    more = int(found["total"] if "total" in found else len(found["images"])) - len(images)
    return LostImagesView(images, f"{more:,}" if more > 0 else "")


def lost_image(source: Source, image: NDArray[np.uint8], label: int, student: int, note: str = "") -> LostImage:
    """Build one image of a gallery.

    Args:
        source: names the classes.
        image: (H, W, 3) uint8 RGB.
        label: the right class.
        student: the student's class.
        note: what else stands below it.
    """
    name = source.class_name(label)
    return LostImage(
        src=thumbnail(image),
        alt=f"test image of {name}",
        small=image.shape[0] < SMALL,
        label=name,
        student=source.class_name(student),
        note=note,
    )


def thumbnail(image: NDArray[np.uint8]) -> str:
    """Return an image (H, W, 3) uint8 as a data URI, made small."""
    small = Image.fromarray(image)
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
