"""Colour jitter and RandAugment for training views, as functions of the view number, on the device of the images.

Every image of a batch goes through the same operations, with strengths that leave most of them without effect. Only
values depend on what was drawn, so a step can be recorded and a view replayed. All geometry costs one gather, all
tables together another, all blends one pass. Except in `distort_views`, images are planes, uint8 (B, 3, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from compress.core.records.training import Distortion
from compress.core.stateless_random import hashed
from compress.data.augment import pixel_ops

JITTER_KEYS = (23, 29, 31, 37)  # keys of `hashed`: brightness, contrast, saturation, hue
# Keys of RandAugment's first operation; those of each further operation are KEYS_APART higher.
OPERATION_KEY = 41
SIGN_KEY = 43
KEYS_APART = 64
# Values processed at a time, by device type: larger blocks do not fit a CPU's caches.
BLOCK_VALUES = {"cpu": 1 << 18}
MAX_MAGNITUDE = 30  # RandAugment's magnitudes are 0 to 30
OPERATIONS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)


def distort_views(images: Tensor, view: Tensor, distortion: Distortion | None) -> Tensor:
    """Apply colour jitter and then RandAugment to cropped views.

    Args:
        images: Cropped views, uint8 (B, H, W, 3).
        view: Their view numbers, int64 (B,).
        distortion: What to apply; None returns `images`.

    Returns:
        uint8 (B, H, W, 3).
    """
    if distortion is None:
        return images
    rows = max(1, BLOCK_VALUES.get(images.device.type, images.numel()) // images[0].numel())
    blocks = zip(torch.split(images, rows), torch.split(view, rows), strict=True)
    parts = [_distort_block(*block, distortion) for block in blocks]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _distort_block(images: Tensor, view: Tensor, distortion: Distortion) -> Tensor:
    planes = images.permute(0, 3, 1, 2).contiguous()
    ranges = (distortion.brightness, distortion.contrast, distortion.saturation, distortion.hue)
    if any(ranges):
        planes = jitter_colors(planes, [uniform_draws(view, key) * 2 - 1 for key in JITTER_KEYS], ranges)
    for number in range(distortion.operations):
        chosen = hashed(view, OPERATION_KEY + KEYS_APART * number) % len(OPERATIONS)
        sign = 1 - 2 * (hashed(view, SIGN_KEY + KEYS_APART * number) % 2)
        planes = apply_operation(planes, chosen, sign, distortion.magnitude)
    return planes.permute(0, 2, 3, 1).contiguous()


def uniform_draws(view: Tensor, key: int) -> Tensor:
    """Draw a number in [0, 1) for each view: float32 (B,) with 24 random bits."""
    return (hashed(view, key) >> 39).float() / 2**24


def jitter_colors(images: Tensor, draws: Sequence[Tensor], ranges: Sequence[float]) -> Tensor:
    """Change brightness, contrast, saturation and hue of the images, in this order.

    Factors are uniform in [max(0, 1 - range), 1 + range], hue in [-range, range] of the colour circle. Source:
    torchvision's ColorJitter, which also draws the order; here it is fixed, because each place in a random order would
    need all four operations.

    Args:
        images: uint8 (B, 3, H, W).
        draws: For each of the four, (B,) in [-1, 1].
        ranges: For each of the four, its range; 0 leaves it unchanged.

    Returns:
        uint8 (B, 3, H, W).
    """
    values = images.float()
    if ranges[0]:
        values = pixel_ops.blend(values, values.new_zeros(()), _factor(draws[0], ranges[0]))
    if ranges[1]:
        values = pixel_ops.blend(values, pixel_ops.mean_shade(pixel_ops.to_grey(values)), _factor(draws[1], ranges[1]))
    if ranges[2]:
        values = pixel_ops.blend(values, pixel_ops.to_grey(values), _factor(draws[2], ranges[2]))
    if ranges[3]:
        values = pixel_ops.shift_hue(values, draws[3] * ranges[3])
    return values.to(torch.uint8)


def _factor(draw: Tensor, extent: float) -> Tensor:
    least = max(0.0, 1 - extent)
    return least + (1 + extent - least) * (draw + 1) / 2


def apply_operation(images: Tensor, chosen: Tensor, sign: Tensor, magnitude: int) -> Tensor:
    """Apply one RandAugment operation to each image.

    Source: Cubuk et al. 2019; operations, magnitudes, nearest sampling and black outside as in torchvision.

    Args:
        images: uint8 (B, 3, H, W).
        chosen: Positions in OPERATIONS, int64 (B,).
        sign: Direction of the operation, -1 or 1, (B,).
        magnitude: 0 to 30.

    Returns:
        uint8 (B, 3, H, W).
    """
    is_ = {name: chosen == number for number, name in enumerate(OPERATIONS)}
    matrices = _matrices(is_, sign.float(), magnitude, *images.shape[2:])
    positions = pixel_ops.table_positions(pixel_ops.warp(images, matrices))
    values = pixel_ops.apply_tables(_tables(is_, pixel_ops.histograms(positions), magnitude), positions)
    shades = pixel_ops.to_grey(values)
    # Brightness blends with black, contrast with the mean shade.
    flat = pixel_ops.mean_shade(shades) * _per_image(is_["contrast"])
    other = torch.where(
        _per_image(is_["color"]), shades, torch.where(_per_image(is_["sharpness"]), pixel_ops.smooth(values), flat)
    )
    blends = is_["brightness"] | is_["color"] | is_["contrast"] | is_["sharpness"]
    strength = 1 + blends * sign * (0.9 * magnitude / MAX_MAGNITUDE)
    return pixel_ops.blend(values, other, strength).to(torch.uint8)


def _per_image(value: Tensor) -> Tensor:
    return value[:, None, None, None]


def _matrices(is_: dict[str, Tensor], sign: Tensor, magnitude: int, height: int, width: int) -> Tensor:
    """Return the matrices (B, 2, 3) for `pixel_ops.warp`.

    Shears keep the top or left edge in place, translations are whole pixels, rotations are about the centre.
    """
    share = magnitude / MAX_MAGNITUDE
    shear, angle = 0.3 * share, math.radians(30 * share)
    across, down = (float(int(150 / 331 * side * share)) for side in (width, height))
    x, y, turn = (is_[name] * sign for name in ("shear_x", "shear_y", "rotate"))
    straight = torch.where(is_["rotate"], math.cos(angle), 1.0)
    rows = (
        straight,
        x * shear - turn * math.sin(angle),
        x * (shear * height / 2) - is_["translate_x"] * sign * across,
        y * shear + turn * math.sin(angle),
        straight,
        y * (shear * width / 2) - is_["translate_y"] * sign * down,
    )
    return torch.stack(rows, dim=1).view(-1, 2, 3)


def _tables(is_: dict[str, Tensor], counts: Tensor, magnitude: int) -> Tensor:
    """Return the new value of each value of each channel, float32 (B, 3, 256)."""
    level = torch.arange(pixel_ops.LEVELS, device=counts.device)
    dropped = 2 ** round(magnitude / (MAX_MAGNITUDE / 4))
    threshold = 255 * (1 - magnitude / MAX_MAGNITUDE)
    table = level.float().expand_as(counts)
    for name, other in (
        ("posterize", (level // dropped * dropped).float()),
        ("solarize", torch.where(level >= threshold, 255 - level, level).float()),
        ("autocontrast", pixel_ops.autocontrast_tables(counts)),
        ("equalize", pixel_ops.equalize_tables(counts)),
    ):
        table = torch.where(is_[name][:, None, None], other, table)
    return table
