"""Training views distorted further, as functions of the view number: colour jitter and RandAugment, on whichever device the pictures live.

Every picture of a batch goes through the same operations, with strengths that leave most of them without effect: nothing depends on what was drawn
but values, so a step can be recorded and a view replayed. Geometry costs one gather, all tables together another, all blends one pass.
Pictures here are planes, uint8 (B, 3, H, W), but for `distorted`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from compress.core.records.training import Distortion
from compress.core.stateless_random import hashed
from compress.data.augment import pixel_ops

JITTER_KEYS = (23, 29, 31, 37)  # of `hashed`: brightness, contrast, saturation, hue
OPERATION_KEY, SIGN_KEY, KEYS_APART = (
    41,
    43,
    64,
)  # of the first operation of RandAugment; the next one's are so much further
BLOCK = {"cpu": 1 << 18}  # values at once: larger blocks leave a CPU's caches
STRONGEST = 30  # RandAugment's magnitudes are 0 to 30
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
    """Views (B,) of pictures uint8 (B, H, W, 3), already cropped, after colour jitter and then RandAugment: uint8 (B, H, W, 3)."""
    if distortion is None:
        return images
    rows = max(1, BLOCK.get(images.device.type, images.numel()) // images[0].numel())
    parts = [_distorted(*part, distortion) for part in zip(images.split(rows), view.split(rows), strict=True)]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _distorted(images: Tensor, view: Tensor, distortion: Distortion) -> Tensor:
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
    """Uniform in [0, 1): float32 (B,), 24 random bits."""
    return (hashed(view, key) >> 39).float() / 2**24


def jitter_colors(images: Tensor, draws: Sequence[Tensor], ranges: Sequence[float]) -> Tensor:
    """Brightness, contrast, saturation and hue of pictures changed in this order, by draws (B,) in [-1, 1] of their ranges; range 0: not at all.

    Factors are uniform in [max(0, 1 - range), 1 + range], hue in [-range, range] of the circle. Source: torchvision's ColorJitter, which draws the
    order as well; here it is fixed, because each place would need all four operations.
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
    """Operation `chosen` (B,) of OPERATIONS, in the direction `sign` (B,) of -1 or 1, on pictures.

    Source: Cubuk et al. 2019, RandAugment; operations, magnitudes (0 to 30), nearest sampling and black outside as torchvision's.
    """
    is_ = {name: chosen == number for number, name in enumerate(OPERATIONS)}
    place = pixel_ops.table_positions(
        pixel_ops.warp(images, _matrices(is_, sign.float(), magnitude, *images.shape[2:]))
    )
    values = pixel_ops.apply_tables(_tables(is_, pixel_ops.histograms(place), magnitude), place)
    shades = pixel_ops.to_grey(values)
    flat = pixel_ops.mean_shade(shades) * _wide(is_["contrast"])  # brightness blends with black
    other = torch.where(
        _wide(is_["color"]), shades, torch.where(_wide(is_["sharpness"]), pixel_ops.smooth(values), flat)
    )
    blends = is_["brightness"] | is_["color"] | is_["contrast"] | is_["sharpness"]
    strength = 1 + blends * sign * (0.9 * magnitude / STRONGEST)
    return pixel_ops.blend(values, other, strength).to(torch.uint8)


def _wide(value: Tensor) -> Tensor:
    return value[:, None, None, None]


def _matrices(is_: dict[str, Tensor], sign: Tensor, magnitude: int, height: int, width: int) -> Tensor:
    """(B, 2, 3) for `pixels.moved`. Shears leave the top or left edge where it is, translations are whole pixels, rotations are about the centre."""
    share = magnitude / STRONGEST
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
    """float32 (B, 3, 256): what becomes of each value of each channel."""
    level = torch.arange(pixel_ops.LEVELS, device=counts.device)
    dropped = 2 ** round(magnitude / (STRONGEST / 4))
    threshold = 255 * (1 - magnitude / STRONGEST)
    table = level.float().expand_as(counts)
    for name, other in (
        ("posterize", (level // dropped * dropped).float()),
        ("solarize", torch.where(level >= threshold, 255 - level, level).float()),
        ("autocontrast", pixel_ops.autocontrast_tables(counts)),
        ("equalize", pixel_ops.equalize_tables(counts)),
    ):
        table = torch.where(is_[name][:, None, None], other, table)
    return table
