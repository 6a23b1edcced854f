"""Training views of a picture file: a random crop, resized and perhaps flipped, as a function of (file, view number). Torch-free.

The crop is cut before pictures are batched, in the process that decodes: pictures differ in size, Pillow's resize is antialiased as the
papers' was, and what then travels to the device is the view alone.
"""

from __future__ import annotations

import io
import math

import numpy as np

from compress.core.stateless_random import hashed_int

TRIES = 10
MARGIN = 2  # a JPEG is decoded at 1/2, 1/4 or 1/8 only where the crop keeps this many times the view's pixels along each side
TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
ORIENTATION = 0x0112


def crop_box(number: int, width: int, height: int, least: float = 0.08) -> tuple[float, float, float, float]:
    """Box `number` of a picture as (left, top, width, height) in pixels.

    Area uniform in [least, 1] of the picture's, aspect log-uniform in [3/4, 4/3], place uniform; a box that does not fit is drawn again, ten
    times, then the centre is taken at the nearest aspect. Source: Szegedy et al. 2015, as torchvision.transforms.RandomResizedCrop.
    """
    for attempt in range(TRIES):
        draws = [hashed_int(number, key + 32 * attempt) / 2.0**63 for key in (11, 13, 17, 19)]
        area = width * height * (least + (1 - least) * draws[0])
        aspect = math.exp((2 * draws[1] - 1) * math.log(4 / 3))
        w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if w <= width and h <= height:
            return (width - w) * draws[2], (height - h) * draws[3], w, h
    w, h = min(width, height * 4 / 3), min(height, width * 4 / 3)
    return (width - w) / 2, (height - h) / 2, w, h


def decode_training_view(content: bytes, view: int, size: int) -> np.ndarray:
    """View = box * 2 + flip of a file's picture: uint8 (size, size, 3). Boxes as small as a quarter of the picture below 128 pixels.

    Raises what Pillow raises on a broken file.
    """
    from PIL import Image, ImageOps

    from compress.data.decode import to_rgb

    with Image.open(io.BytesIO(content)) as image:
        turned = image.getexif().get(ORIENTATION) in TURNED
        width, height = image.size[::-1] if turned else image.size
        left, top, w, h = crop_box(view // 2, width, height, 0.08 if size >= 128 else 0.25)
        wanted = (math.ceil(MARGIN * size * width / w), math.ceil(MARGIN * size * height / h))
        image.draft(None, wanted[::-1] if turned else wanted)
        upright = to_rgb(ImageOps.exif_transpose(image))
    across, down = upright.width / width, upright.height / height
    box = (left * across, top * down, min((left + w) * across, upright.width), min((top + h) * down, upright.height))
    pixels = np.asarray(upright.resize((size, size), Image.Resampling.BILINEAR, box=box))
    return pixels[:, ::-1] if view % 2 else pixels
