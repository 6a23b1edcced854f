"""Test images that the teacher gets right and the student wrong."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from compress.report.read import Arrays, Source

MOST_IMAGES = 24
# Pixels; smaller images are kept as they are and enlarged by the browser.
THUMBNAIL = 112
SMALL = 64
# Arrays of a gallery, and which of its arrays holds the labels to them.
LABELS = {"images": "labels", "names": "labels", "slice_images": "slice_labels", "slice_names": "slice_labels"}
LONGEST_NAME = 44  # characters of a file's path; of a longer one the middle is left out


@dataclass(frozen=True)
class FileName:
    """The path of an image's file. `title`: the whole path, where `text` leaves out its middle."""

    text: str
    title: str = ""


@dataclass(frozen=True)
class LostImage:
    """One image with the right class and the student's.

    `src`: a data URI, empty where the recipe keeps images out of the report; `file`: None where it has none.
    """

    src: str
    alt: str
    small: bool
    label: str
    student: str
    note: str = ""
    file: FileName | None = None


@dataclass(frozen=True)
class LostImagesView:
    """The images, how many more there are, and why none is shown."""

    images: Sequence[LostImage]
    more: str
    hidden: str = ""


def lost_images(source: Source) -> LostImagesView | None:
    """Build the gallery of the images that the shipped student lost; None where there is none."""
    found = source.images
    if not found or not len(found["labels"]):
        return None
    columns = (images_of(found, "images"), found["labels"], found["student"], names_of(found, "names"))
    rows = list(zip(*columns, strict=True))
    images = [
        lost_image(source, image, label, student, name=name) for image, label, student, name in rows[:MOST_IMAGES]
    ]
    more = int(found["total"] if "total" in found else len(found["labels"])) - len(images)
    return LostImagesView(images, f"{more:,}" if more > 0 else "", source.hidden)


def images_of(found: Arrays, key: str) -> Sequence[NDArray[np.uint8] | None]:
    """Return the pixels of a gallery. `key`: images or slice_images, which are missing where none may be shown."""
    return list(found[key]) if key in found else [None] * len(found[LABELS[key]])


def names_of(found: Arrays, key: str) -> Sequence[str | None]:
    """Return the file names of a gallery's images. `key`: names or slice_names; older galleries have neither."""
    labels = found[LABELS[key]]
    return [str(name) for name in found[key]] if key in found else [None] * len(labels)


def lost_image(
    source: Source, image: NDArray[np.uint8] | None, label: int, student: int, note: str = "", name: str | None = None
) -> LostImage:
    """Build one image of a gallery.

    Args:
        source: names the classes.
        image: (H, W, 3) uint8 RGB; None: it may not be shown.
        label: the right class.
        student: the student's class.
        note: what else stands below it.
        name: the path of its file; None where it has none.
    """
    right = source.class_name(label)
    return LostImage(
        src="" if image is None else thumbnail(image),
        alt=f"test image of {right}",
        small=image is not None and image.shape[0] < SMALL,
        label=right,
        student=source.class_name(student),
        note=note,
        file=None if name is None else file_name(name),
    )


def file_name(path: str) -> FileName:
    """Return a file's path as the page shows it: the middle of a long one is left out."""
    if len(path) <= LONGEST_NAME:
        return FileName(path)
    kept = LONGEST_NAME - 1
    head = kept * 2 // 5  # the end tells more: it is the file's own name
    return FileName(f"{path[:head]}\u2026{path[head - kept :]}", path)


def thumbnail(image: NDArray[np.uint8]) -> str:
    """Return an image (H, W, 3) uint8 as a data URI, made small."""
    small = Image.fromarray(image)
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
