"""Training views as pure, batched functions of (picture, view number), on whichever device the pictures live.

A view is an integer, so augmentation needs no generator, costs one gather, and can be replayed for any subset in any order: a teacher's
logits can be remembered per (picture, view). B pictures of a batch, N of the data set, S the stored side, p the padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from compress.core.stateless_random import hashed

CROP_BOXES = 4096  # resized_crop draws from this many boxes, so that a view stays a small number
DISTORTIONS = 16  # so often each crop and flip of small pictures is a view of its own where views are distorted further (`data.distort`)


def padding_of(image_size: int) -> int:
    """How far crops move, in pixels: an eighth of the side (4 at 32, as in the papers)."""
    return round(image_size / 8)


def view_count(augment: str, image_size: int = 32, padding: int | None = None, *, distorted: bool = False) -> int:
    """How many different views a picture has: 162 for crop_flip at 32x32 (9 x 9 offsets, flipped or not), 16 times as many `distorted`.

    resized_crop has 8,192 in either case: each box and flip has its own distortion.
    """
    offsets = 2 * (padding_of(image_size) if padding is None else padding) + 1
    crops = {"none": 1, "flip": 2, "crop": offsets**2, "crop_flip": offsets**2 * 2, "resized_crop": CROP_BOXES * 2}[
        augment
    ]
    return crops * DISTORTIONS if distorted and augment != "resized_crop" else crops


def views_of(
    index: Tensor,
    epoch: int,
    seed: int,
    augment: str,
    limit: int | None = None,
    image_size: int = 32,
    *,
    distorted: bool = False,
) -> Tensor:
    """The view of each picture `index` (B,) in an epoch: int64 (B,) in [0, view_count).

    Without `limit` the views are independent draws of (seed, epoch, picture). With it every picture has `limit` different views of its own,
    the same for every seed (so that a teacher's logits serve all seeds), and any `limit` successive epochs use each exactly once.
    """
    total = view_count(augment, image_size, distorted=distorted)
    if limit is None:
        return hashed(index, (seed << 32) ^ (epoch << 1)) % total
    limit = min(limit, total)
    turn = (hashed(index, (seed << 32) ^ 1) + epoch) % limit
    # start + stride * turn modulo total visits different numbers when the stride has no common divisor with total
    units = torch.tensor([n for n in range(max(total, 2)) if math.gcd(n, total) == 1], device=index.device)
    stride = units[hashed(index, 3) % len(units)]
    return (hashed(index, 5) + stride * turn) % total


def views_of_epoch(
    count: int,
    epoch: int,
    seed: int,
    augment: str,
    limit: int | None = None,
    image_size: int = 32,
    *,
    distorted: bool = False,
) -> Tensor:
    """`views_of` for all pictures 0 ... count - 1: int64 (count,)."""
    return views_of(torch.arange(count), epoch, seed, augment, limit, image_size, distorted=distorted)


def apply_views(
    images: Tensor, index: Tensor, view: Tensor, augment: str, image_size: int, padding: int | None = None
) -> Tensor:
    """The views (B,) of pictures `index` (B,) of images uint8 (N, S, S, 3), S >= image_size: uint8 (B, image_size, image_size, 3).

    crop_flip, crop: the centre window moved by up to p = `padding` pixels each way, black outside the picture;
    view = (row * (2p + 1) + column) * 2 + flip (crop: without the flip; flip: with p = 0). resized_crop: see `crop_boxes`. none: the centre.
    A view beyond those starts again at the first: `distort` tells them apart.
    """
    if augment == "none":
        return evaluation_view(images.index_select(0, index), image_size).contiguous()
    if augment == "resized_crop":
        return _resized_crops(images.index_select(0, index), view, image_size)
    pad = 0 if augment == "flip" else padding_of(image_size) if padding is None else padding
    view = view % view_count(augment, image_size, padding)
    flip, offset = (torch.zeros_like(view), view) if augment == "crop" else (view % 2, view // 2)
    batch = functional.pad(images.index_select(0, index), (0, 0, pad, pad, pad, pad))
    side, start = batch.shape[1], (images.shape[1] - image_size) // 2
    along = torch.arange(image_size, device=images.device)
    row = start + (offset // (2 * pad + 1))[:, None] + along
    column = start + (offset % (2 * pad + 1))[:, None] + torch.where(flip[:, None] == 1, image_size - 1 - along, along)
    first = torch.arange(len(index), device=images.device)[:, None, None] * side**2
    pixel = first + row[:, :, None] * side + column[:, None, :]
    return batch.view(-1, 3)[pixel]


def crop_boxes(number: Tensor, image_size: int) -> Tensor:
    """Box `number` (B,) of resized_crop as float32 (B, 4): centre x, y and half width, height, in [-1, 1] of the picture.

    Area uniform in [0.08, 1] (below 128 pixels [0.25, 1]: they hold less to crop), aspect log-uniform in [3/4, 4/3], place uniform.
    Source: Szegedy et al. 2015; here a side that would exceed the picture is cut to it, where torchvision draws again.
    """
    device = number.device
    if device.type == "mps":  # has no float64
        number = number.cpu()
    draws = torch.stack([hashed(number, key) for key in (11, 13, 17, 19)]).double() / 2.0**63
    least = 0.08 if image_size >= 128 else 0.25
    area = least + (1 - least) * draws[0]
    aspect = torch.exp((2 * draws[1] - 1) * math.log(4 / 3))
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    x, y = (2 * draws[2] - 1) * (1 - width), (2 * draws[3] - 1) * (1 - height)
    return torch.stack([x, y, width, height], dim=1).float().to(device)


def _resized_crops(batch: Tensor, view: Tensor, image_size: int) -> Tensor:
    """View = box * 2 + flip. Bilinear sampling at pixel centres without antialiasing: torch has none for one box per picture."""
    x, y, width, height = crop_boxes(view // 2, image_size).unbind(1)
    mirror = 1 - 2.0 * (view % 2)
    zero = torch.zeros_like(x)
    theta = torch.stack([torch.stack([width * mirror, zero, x], 1), torch.stack([zero, height, y], 1)], 1)
    grid = functional.affine_grid(theta, [len(batch), 3, image_size, image_size], align_corners=False)
    sampled = functional.grid_sample(
        batch.permute(0, 3, 1, 2).float(), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return sampled.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def evaluation_view(images: Tensor, image_size: int) -> Tensor:
    """The centre of pictures uint8 (B, S, S, 3): (B, image_size, image_size, 3)."""
    offset = (images.shape[1] - image_size) // 2
    return images[:, offset : offset + image_size, offset : offset + image_size]


def to_float(images: Tensor, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> Tensor:
    """(x / 255 - mean) / std of pixels uint8 (B, H, W, 3): float32 (B, 3, H, W), channels_last. The one place where pixels become floats.

    `mean` and `std` (3,) of pixels in [0, 1]; as float32 tensors on the device they cost no transfer. Subtraction and division are single
    operations, each exactly rounded, so that a picture's values do not depend on its place in a batch.
    """
    middle = torch.as_tensor(mean, dtype=torch.float32, device=images.device).view(3, 1, 1) * 255
    spread = torch.as_tensor(std, dtype=torch.float32, device=images.device).view(3, 1, 1) * 255
    return images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last).sub_(middle).div_(spread)
