"""Training views of an image file: a random crop, resized and perhaps flipped, as a function of (file, view number).

Torch-free. The crop is cut in the process that decodes, before images are batched: images differ in size, Pillow's
resize is antialiased as in the papers, and only the view travels to the device. Files are opened as in
`data/decode.py`.
"""

from __future__ import annotations

import math

import numpy as np

from compress.core.stateless_random import hashed_int
from export.runtime import images

ATTEMPTS = 10
# A JPEG is decoded at 1/2, 1/4 or 1/8 only if the crop keeps this many times the view's pixels along each side.
DRAFT_MARGIN = 2


def default_scale(image_size: int) -> tuple[float, float]:
    """Return the smallest and largest part of an image that a view shows, as in the papers.

    Below 128 pixels the smallest one is larger, because small images hold less to crop.
    """
    return (0.08 if image_size >= 128 else 0.25), 1.0


def crop_box(
    number: int, width: int, height: int, least: float = 0.08, most: float = 1.0
) -> tuple[float, float, float, float]:
    """Return box `number` of an image as (left, top, width, height) in pixels.

    The area is uniform in [least, most] of the image's, the aspect log-uniform in [3/4, 4/3], the place uniform. A box
    that does not fit is drawn again, up to ten times; then the centre is taken at the nearest aspect. Source: Szegedy
    et al. 2015, as in torchvision.transforms.RandomResizedCrop.

    Args:
        number: Number of the box; the same number always gives the same box.
        width: Width of the image, in pixels.
        height: Height of the image, in pixels.
        least: Smallest share of the area, in (0, 1].
        most: Largest share of the area, in [least, 1].
    """
    for attempt in range(ATTEMPTS):
        draws = [hashed_int(number, key + 32 * attempt) / 2.0**63 for key in (11, 13, 17, 19)]
        area = width * height * (least + (most - least) * draws[0])
        aspect = math.exp((2 * draws[1] - 1) * math.log(4 / 3))
        w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if w <= width and h <= height:
            return (width - w) * draws[2], (height - h) * draws[3], w, h
    w, h = min(width, height * 4 / 3), min(height, width * 4 / 3)
    return (width - w) / 2, (height - h) / 2, w, h


def decode_training_view(content: bytes, view: int, size: int, scale: tuple[float, float] | None = None) -> np.ndarray:
    """Decode a training view of a file's bytes, uint8 (size, size, 3).

    Args:
        content: The file's bytes. One of `decode.DECODE_ERRORS` is raised if they are broken.
        view: Box * 2 + flip.
        size: Side of the view, in pixels.
        scale: Smallest and largest share of the area that boxes cover; None for `default_scale`.
    """
    from PIL import Image

    with images.open_image(content) as image:
        width, height = image.size[::-1] if images.is_transposed(image) else image.size
        left, top, w, h = crop_box(view // 2, width, height, *(scale or default_scale(size)))
        wanted = (math.ceil(DRAFT_MARGIN * size * width / w), math.ceil(DRAFT_MARGIN * size * height / h))
        upright = images.to_upright_rgb(image, wanted)
    across, down = upright.width / width, upright.height / height
    box = (left * across, top * down, min((left + w) * across, upright.width), min((top + h) * down, upright.height))
    pixels = np.asarray(upright.resize((size, size), Image.Resampling.BILINEAR, box=box))
    return pixels[:, ::-1] if view % 2 else pixels
