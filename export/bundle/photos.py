"""The bundle's photos: JPEG files of the kinds that applications get wrong, drawn around test images. Needs Pillow."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from export.runtime import images as image_files
from export.runtime import photos
from export.runtime.photo_faults import pool

# Name, description, EXIF orientation, colour mode, (width, height) in short sides or pixels, options of the JPEG
# encoder.
_KINDS: tuple[tuple[str, str, int, str, tuple[float, float], dict[str, Any]], ...] = (
    ("landscape", "landscape", 1, "RGB", (1.5, 1), {}),
    ("portrait", "portrait, progressive", 1, "RGB", (1, 1.5), {"progressive": True, "subsampling": 0}),
    ("exif6", "EXIF orientation 6", 6, "RGB", (1.5, 1), {}),
    ("exif3", "EXIF orientation 3", 3, "RGB", (1.25, 1), {}),
    ("exif8", "EXIF orientation 8", 8, "RGB", (1, 1.5), {}),
    ("grey", "grey", 1, "L", (1.5, 1), {}),
    ("cmyk", "CMYK", 1, "CMYK", (1.5, 1), {}),
    ("large", "12 megapixels", 1, "RGB", (4000, 3000), {"quality": 80}),
)
COUNT = len(_KINDS)
# Rows of a canvas that are drawn at once.
_ROWS_AT_ONCE = 200
# Tint of a grey image, on which swapped channels would not show.
_WARM = np.array([1.0, 0.85, 0.65])
# How the stored pixels are turned for each value of the orientation tag.
_STORED_TRANSPOSE = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}


def write(
    folder: Path,
    images: np.ndarray,
    resize: int,
    own_photos: Sequence[Path] = (),
    scale: image_files.Range | None = None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Write `folder/photos/*.jpg`, one photo of each kind, and copy the user's own photos beside them.

    Args:
        folder: the bundle.
        images: test images uint8 (N, S, S, 3) that the photos are drawn around.
        resize: what the short side of a photo is resized to before its centre is cut out, in pixels.
        own_photos: files of the user; they keep every byte, EXIF included, but not their names.
        scale: range of values of photos of more than 8 bits; None: 16 bits.

    Returns:
        The `photos` entry of the manifest, and arrays: `pixels` uint8 (M, S, S, 3), the right decoding, and pooled
        (M, P, P, 3) what each fault of `photo_faults.VARIANTS` would give.
    """
    (folder / photos.FOLDER).mkdir()
    crop = images.shape[1]
    rows: list[dict[str, Any]] = []
    pixels: list[np.ndarray] = []
    faulty: dict[str, list[np.ndarray]] = {"squash": [], "exif": [], **({"uncropped": []} if resize != crop else {})}
    for index, (name, what, orientation, mode, shape, options) in enumerate(_KINDS):
        path = folder / photos.FOLDER / f"{name}.jpg"
        drawn = _draw(images[index % len(images)], _size(shape, resize), resize / crop)
        _save(drawn.convert(mode), path, orientation, options)
        rows.append({"file": f"{photos.FOLDER}/{name}.jpg", "what": what, "picture": index % len(images), "own": False})
    for number, source in enumerate(own_photos, 1):
        path = folder / photos.FOLDER / f"own{number}{source.suffix.lower()}"
        shutil.copyfile(source, path)
        what = _description(path, number)
        rows.append({"file": f"{photos.FOLDER}/{path.name}", "what": what, "picture": None, "own": True})
    for row in rows:
        path = folder / row["file"]
        pixels.append(photos.preprocess(path, resize, crop, scale=scale))
        faulty["squash"].append(photos.preprocess(path, resize, crop, squash=True, scale=scale))
        faulty["exif"].append(photos.preprocess(path, resize, crop, upright=False, scale=scale))
        if "uncropped" in faulty:
            faulty["uncropped"].append(photos.preprocess(path, crop, crop, scale=scale))
    spec = {
        "file": photos.ARRAYS,
        "resize": resize,
        "crop": crop,
        "filter": "bilinear, antialiased",
        "upright": "EXIF",
        "colour": "RGB",
    }
    pooled = {name: np.rint(pool(np.stack(decoded))).astype(np.uint8) for name, decoded in faulty.items()}
    return {**spec, "pictures": rows}, {"pixels": np.stack(pixels), **pooled}


def _description(path: Path, number: int) -> str:
    with image_files.open_image(path) as image:
        orientation = image.getexif().get(image_files.EXIF_ORIENTATION, 1)
        mode = "" if image.mode == "RGB" else f", {image.mode}"
        turned = f", EXIF orientation {orientation}" if orientation != 1 else ""
        return f"own photo {number}: {image.width} x {image.height}{mode}{turned}"


def _size(shape: tuple[float, float], resize: int) -> tuple[int, int]:
    """Return width and height in pixels; sides below 10 count short sides of three times `resize`, at least 240."""
    short = max(3 * resize, 240)
    return (int(shape[0]), int(shape[1])) if shape[0] > 10 else (round(shape[0] * short), round(shape[1] * short))


def _draw(image: np.ndarray, size: tuple[int, int], border: float) -> Image.Image:
    """Return a photo of `size` with the image uint8 (S, S, 3) in its centre, in the size that the right crop cuts out.

    Around it is a slanted gradient that differs on every side, so that a squash, a rotation and a mirror all show.
    """
    width, height = size
    across = np.linspace(0, 1, width)
    canvas = np.empty((height, width, 3), np.uint8)
    # All 12 megapixels in float64 at once would take a gigabyte.
    for rows in np.array_split(np.arange(height), -(-height // _ROWS_AT_ONCE)):
        down = np.linspace(0, 1, height)[rows, None]
        for channel, values in enumerate((230 - 200 * across, 40 + 170 * down, 30 + 110 * (across + (1 - down)))):
            canvas[rows, :, channel] = np.clip(np.rint(values), 0, 255)
    photo = Image.fromarray(canvas)
    if (image == image[..., :1]).all():
        image = np.rint(image * _WARM).astype(np.uint8)
    side = round(min(size) / border)
    centre = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
    photo.paste(centre, ((width - side) // 2, (height - side) // 2))
    return photo


def _save(image: Image.Image, path: Path, orientation: int, options: dict[str, Any]) -> None:
    tags = Image.Exif()
    if orientation != 1:
        tags[image_files.EXIF_ORIENTATION] = orientation
        image = image.transpose(_STORED_TRANSPOSE[orientation])
    image.save(path, "JPEG", **{"quality": 92, **options}, exif=tags.tobytes() if orientation != 1 else b"")
