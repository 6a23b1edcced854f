"""Makes the bundle's photos: real JPEG files of the kinds that applications stumble over, drawn around test pictures. Needs Pillow."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from export.runtime import photos

# name, what it is, EXIF orientation, colour mode, (width, height) in short sides or pixels, options of the JPEG encoder
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
_ROWS = 200  # of a canvas that are drawn at once
_ORIENTATION = 0x0112  # the EXIF tag
_WARM = np.array([1.0, 0.85, 0.65])  # of a grey picture, on which swapped channels would not show
# How the stored pixels lie where the tag says that the viewer must turn them.
_STORED = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}


def write(
    folder: Path, images: np.ndarray, resize: int, own: Sequence[Path] = ()
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Write `folder/photos/*.jpg` around pictures uint8 (N, S, S, 3), one of each kind, and copy the user's `own` photos beside them.

    Own photos keep every byte, EXIF included, but not their names. Returns the manifest's entry and the arrays.

    Arrays: `pixels` uint8 (M, S, S, 3), what the right decoding gives, and pooled (M, P, P, 3) what each fault of `photos.VARIANTS` would.
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
    for number, source in enumerate(own, 1):
        path = folder / photos.FOLDER / f"own{number}{source.suffix.lower()}"
        shutil.copyfile(source, path)
        rows.append(
            {"file": f"{photos.FOLDER}/{path.name}", "what": _described(path, number), "picture": None, "own": True}
        )
    for row in rows:
        path = folder / row["file"]
        pixels.append(photos.preprocess(path, resize, crop))
        faulty["squash"].append(photos.preprocess(path, resize, crop, squash=True))
        faulty["exif"].append(photos.preprocess(path, resize, crop, upright=False))
        if "uncropped" in faulty:
            faulty["uncropped"].append(photos.preprocess(path, crop, crop))
    spec = {
        "file": photos.ARRAYS,
        "resize": resize,
        "crop": crop,
        "filter": "bilinear, antialiased",
        "upright": "EXIF",
        "colour": "RGB",
    }
    pooled = {name: np.rint(photos.pool(np.stack(pictures))).astype(np.uint8) for name, pictures in faulty.items()}
    return {**spec, "pictures": rows}, {"pixels": np.stack(pixels), **pooled}


def _described(path: Path, number: int) -> str:
    with Image.open(path) as picture:
        turned = picture.getexif().get(_ORIENTATION, 1)
        mode = "" if picture.mode == "RGB" else f", {picture.mode}"
        return f"own photo {number}: {picture.width} x {picture.height}{mode}" + (
            f", EXIF orientation {turned}" if turned != 1 else ""
        )


def _size(shape: tuple[float, float], resize: int) -> tuple[int, int]:
    """Width and height in pixels: sides below 10 count short sides of three times the size that it is resized to."""
    short = max(3 * resize, 240)
    return (int(shape[0]), int(shape[1])) if shape[0] > 10 else (round(shape[0] * short), round(shape[1] * short))


def _draw(picture: np.ndarray, size: tuple[int, int], border: float) -> Image.Image:
    """A photo of `size` whose centre is the picture uint8 (S, S, 3), so large that the right crop finds it; around it a slanted gradient.

    The gradient differs on every side, so that a squash, a rotation and a mirror all show.
    """
    width, height = size
    across = np.linspace(0, 1, width)
    canvas = np.empty((height, width, 3), np.uint8)
    for rows in np.array_split(
        np.arange(height), -(-height // _ROWS)
    ):  # 12 megapixels of float64 would take a gigabyte
        down = np.linspace(0, 1, height)[rows, None]
        for channel, values in enumerate((230 - 200 * across, 40 + 170 * down, 30 + 110 * (across + (1 - down)))):
            canvas[rows, :, channel] = np.clip(np.rint(values), 0, 255)
    image = Image.fromarray(canvas)
    if (picture == picture[..., :1]).all():
        picture = np.rint(picture * _WARM).astype(np.uint8)
    side = round(min(size) / border)
    image.paste(
        Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC),
        ((width - side) // 2, (height - side) // 2),
    )
    return image


def _save(image: Image.Image, path: Path, orientation: int, options: dict[str, Any]) -> None:
    tags = Image.Exif()
    if orientation != 1:
        tags[_ORIENTATION] = orientation
        image = image.transpose(_STORED[orientation])
    image.save(path, "JPEG", **{"quality": 92, **options}, exif=tags.tobytes() if orientation != 1 else b"")
