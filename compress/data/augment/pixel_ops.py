"""Operations on a batch of images, each image with a strength of its own. None synchronizes with the device.

Images are planes: uint8 (B, 3, H, W), or float32 of the same shape with whole numbers from 0 to 255. Definitions and
rounding are those of torchvision.transforms.v2.functional on uint8. In `blend` and `shift_hue` a value may differ by
one grey level, because float32 rounds otherwise.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = 256


def blend(pixels: Tensor, other: Tensor, strength: Tensor) -> Tensor:
    """Blend: strength x pixels + (1 - strength) x other, clamped to [0, 255] and rounded down.

    Strength 1 changes nothing, and neither does a pixel that equals `other`, which torchvision may round down.

    Args:
        pixels: float32 (B, 3, H, W).
        other: Broadcastable to `pixels`.
        strength: (B,).

    Returns:
        float32 (B, 3, H, W).
    """
    return torch.lerp(pixels, other, (1 - strength)[:, None, None, None]).clamp_(0, 255).floor_()


def to_grey(pixels: Tensor) -> Tensor:
    """Return the brightness of each pixel, rounded down: float32 (B, 1, H, W)."""
    red, green, blue = torch.split(pixels, 1, dim=1)
    shades: Tensor = red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()
    return shades


def mean_shade(shades: Tensor) -> Tensor:
    """Return the mean (B, 1, 1, 1) of shades float32 (B, 1, H, W), summed as integers: the order cannot matter."""
    return shades.to(torch.int32).sum((1, 2, 3), keepdim=True).float() / (shades.shape[2] * shades.shape[3])


def smooth(pixels: Tensor) -> Tensor:
    """Average each pixel, weighted five times, with its eight neighbours, rounded; float32 (B, 3, H, W).

    The outermost pixels stay as they are.
    """
    out = pixels.clone()
    down = (pixels[:, :, :-2] + pixels[:, :, 1:-1]).add_(pixels[:, :, 2:])
    around = (down[..., :-2] + down[..., 1:-1]).add_(down[..., 2:])
    out[:, :, 1:-1, 1:-1] = around.add_(pixels[:, :, 1:-1, 1:-1], alpha=4).div_(13).round_()
    return out


def shift_hue(pixels: Tensor, turn: Tensor) -> Tensor:
    """Shift the hue by `turn` (B,) turns of the colour circle, through HSV: float32 (B, 3, H, W)."""
    share = pixels / 255
    red, green, blue = share.unbind(1)
    low, high = torch.minimum(torch.minimum(red, green), blue), torch.maximum(torch.maximum(red, green), blue)
    chroma = high - low
    safe = chroma.masked_fill(chroma == 0, 1)
    sixths = torch.where(
        high == red,
        (green - blue).div_(safe),
        torch.where(high == green, (blue - red).div_(safe).add_(2), (red - green).div_(safe).add_(4)),
    )
    sixths.add_(6 * turn[:, None, None])
    for channel, offset in enumerate((5, 3, 1)):
        k = (sixths + offset).remainder_(6)
        share[:, channel] = torch.minimum(k, 4 - k).clamp_(0, 1).mul_(chroma).neg_().add_(high)
    return share.mul_(256 - 1e-3).floor_().clamp_(0, 255)


def warp(images: Tensor, matrix: Tensor) -> Tensor:
    """Sample each pixel from where its image's matrix (B, 2, 3) points, nearest, black outside: uint8 (B, 3, H, W).

    A matrix maps (x, y, 1), counted from the image's centre, to the position that is read.
    """
    height, width = images.shape[2:]
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    y = (torch.arange(height, device=images.device) - (height - 1) / 2)[:, None]
    a, b, c, d, e, f = (value[:, None, None] for value in matrix.flatten(1).unbind(1))
    column = (a * x + (b * y + (c + (width - 1) / 2))).round_()
    row = (d * x + (e * y + (f + (height - 1) / 2))).round_()
    inside = (column >= 0).logical_and_(column < width).logical_and_(row >= 0).logical_and_(row < height)
    place = row.clamp_(0, height - 1).mul_(width).add_(column.clamp_(0, width - 1)).long()
    found = images.flatten(2).gather(2, place.flatten(1)[:, None].expand(-1, 3, -1)).view_as(images)
    return found.mul_(inside[:, None])


def table_positions(images: Tensor) -> Tensor:
    """Return where each uint8 value is in a flattened table (B, 3, 256): int64 (B, 3, H, W)."""
    first = torch.arange(len(images) * 3, device=images.device).view(-1, 3, 1, 1) * LEVELS
    return images + first


def histograms(place: Tensor) -> Tensor:
    """Count each value of each image's channel, from `table_positions`: int32 (B, 3, 256)."""
    counts = torch.zeros(len(place) * 3 * LEVELS, dtype=torch.int32, device=place.device)
    one = torch.ones((), dtype=torch.int32, device=place.device)
    return counts.scatter_add_(0, place.flatten(), one.expand(place.numel())).view(-1, 3, LEVELS)


def apply_tables(table: Tensor, place: Tensor) -> Tensor:
    """Look up a table (B, 3, 256) at `table_positions`: (B, 3, H, W)."""
    return table.flatten().index_select(0, place.flatten()).view(place.shape)


def autocontrast_tables(counts: Tensor) -> Tensor:
    """Return tables float32 (B, 3, 256) that stretch each channel from its darkest and brightest value to 0 and 255."""
    present = (counts > 0).to(torch.int32)
    low, high = present.argmax(2, keepdim=True).float(), (LEVELS - 1 - present.flip(2).argmax(2, keepdim=True)).float()
    level = torch.arange(LEVELS, device=counts.device).float()
    scale = (high - low) * (1 / 255)
    return torch.where(high == low, level, ((level - low) / torch.where(high == low, 1, scale)).clamp(0, 255).floor())


def equalize_tables(counts: Tensor) -> Tensor:
    """Return tables float32 (B, 3, 256) that give every range of values about equally many pixels, as Pillow does."""
    total = counts.cumsum(2)
    last = total.argmax(2, keepdim=True)  # the brightest value that occurs
    step = (total[:, :, -1:] - counts.gather(2, last)).div(255, rounding_mode="floor")
    table = (total - counts + step // 2).div(step.clamp(min=1), rounding_mode="floor").clamp_(0, 255)
    return torch.where(step == 0, torch.arange(LEVELS, device=counts.device), table).float()
