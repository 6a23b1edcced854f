"""Operations on a batch of pictures, each picture with a strength of its own; none waits for the device or looks at a single picture.

B pictures of H x W pixels as planes: uint8 (B, 3, H, W), or float32 of the same shape with whole numbers from 0 to 255. Definitions and rounding are
those of torchvision.transforms.v2.functional on uint8; where float32 rounds otherwise a value differs by one grey level (`blended`, `hue_turned`).
"""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = 256


def blend(pixels: Tensor, other: Tensor, strength: Tensor) -> Tensor:
    """strength x pixels + (1 - strength) x other, cut to [0, 255] and rounded down: float32 (B, 3, H, W) of pixels float32, strength (B,).

    Strength 1, and a pixel that equals `other`, change nothing; torchvision can round the latter one level down.
    """
    return torch.lerp(pixels, other, (1 - strength)[:, None, None, None]).clamp_(0, 255).floor_()


def to_grey(pixels: Tensor) -> Tensor:
    """Brightness of each pixel, rounded down: float32 (B, 1, H, W) of float32."""
    red, green, blue = pixels.split(1, dim=1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()


def mean_shade(shades: Tensor) -> Tensor:
    """Mean (B, 1, 1, 1) of shades float32 (B, 1, H, W); summed as whole numbers, so that no order of summation matters."""
    return shades.to(torch.int32).sum((1, 2, 3), keepdim=True).float() / (shades.shape[2] * shades.shape[3])


def smooth(pixels: Tensor) -> Tensor:
    """Each pixel with its eight neighbours, itself five times, rounded; the outermost pixels as they are. float32 (B, 3, H, W) of float32."""
    out = pixels.clone()
    down = (pixels[:, :, :-2] + pixels[:, :, 1:-1]).add_(pixels[:, :, 2:])
    around = (down[..., :-2] + down[..., 1:-1]).add_(down[..., 2:])
    out[:, :, 1:-1, 1:-1] = around.add_(pixels[:, :, 1:-1, 1:-1], alpha=4).div_(13).round_()
    return out


def shift_hue(pixels: Tensor, turn: Tensor) -> Tensor:
    """Hue moved by `turn` (B,), in whole turns of the colour circle, by way of HSV: float32 (B, 3, H, W) of float32."""
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
    """Each pixel from where its picture's matrix (B, 2, 3) sends it, nearest, black outside: uint8 (B, 3, H, W) of uint8.

    A matrix takes (x, y, 1), counted from the picture's centre, to the place that is read.
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
    """Where each value stands in a table (B, 3, 256): int64 (B, 3, H, W) of uint8."""
    first = torch.arange(len(images) * 3, device=images.device).view(-1, 3, 1, 1) * LEVELS
    return images + first


def histograms(place: Tensor) -> Tensor:
    """How often each picture's channel has each value: int32 (B, 3, 256) of what `places` says."""
    counts = torch.zeros(len(place) * 3 * LEVELS, dtype=torch.int32, device=place.device)
    one = torch.ones((), dtype=torch.int32, device=place.device)
    return counts.scatter_add_(0, place.flatten(), one.expand(place.numel())).view(-1, 3, LEVELS)


def apply_tables(table: Tensor, place: Tensor) -> Tensor:
    """The table's (B, 3, 256) value for each pixel's: (B, 3, H, W) of what `places` says."""
    return table.flatten().index_select(0, place.flatten()).view(place.shape)


def autocontrast_tables(counts: Tensor) -> Tensor:
    """Tables float32 (B, 3, 256) that stretch each channel from its darkest and brightest value to 0 and 255 (autocontrast)."""
    there = (counts > 0).to(torch.int32)
    low, high = there.argmax(2, keepdim=True).float(), (LEVELS - 1 - there.flip(2).argmax(2, keepdim=True)).float()
    level = torch.arange(LEVELS, device=counts.device).float()
    scale = (high - low) * (1 / 255)
    return torch.where(high == low, level, ((level - low) / torch.where(high == low, 1, scale)).clamp(0, 255).floor())


def equalize_tables(counts: Tensor) -> Tensor:
    """Tables float32 (B, 3, 256) that give every range of values about equally many pixels, as Pillow's equalize."""
    total = counts.cumsum(2)
    last = total.argmax(2, keepdim=True)  # the brightest value that is there
    step = (total[:, :, -1:] - counts.gather(2, last)).div(255, rounding_mode="floor")
    table = (total - counts + step // 2).div(step.clamp(min=1), rounding_mode="floor").clamp_(0, 255)
    return torch.where(step == 0, torch.arange(LEVELS, device=counts.device), table).float()
