"""Training views as pure, batched functions of (image, view number), on the device of the images.

A view is an integer, so augmentation needs no generator, costs one gather, and can be replayed for any subset in any
order: a teacher's logits can be cached per (image, view). B is the batch size, N the size of the data set, S the
stored side, p the padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from compress.core.stateless_random import hashed
from compress.data.augment.crops import default_scale

# resized_crop draws from this many boxes, so that a view stays a small number.
CROP_BOXES = 4096
# How many distortions each crop and flip of a small image comes in, where views are distorted further.
DISTORTIONS = 16


def padding_of(image_size: int) -> int:
    """Return how far crops move, in pixels: an eighth of the side (4 at 32, as in the papers)."""
    return round(image_size / 8)


def view_count(augment: str, image_size: int = 32, padding: int | None = None, *, distorted: bool = False) -> int:
    """Return how many different views an image has.

    crop_flip has 162 at 32x32 (9 x 9 offsets, flipped or not). resized_crop always has 8,192: each box and flip has its
    own distortion.

    Args:
        augment: "none", "flip", "crop", "crop_flip" or "resized_crop".
        image_size: Side of the images, in pixels.
        padding: How far crops move, in pixels; None for `padding_of`.
        distorted: Whether views are distorted further, which gives DISTORTIONS times as many.
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
    """Return the view of each image in an epoch: int64 (B,) in [0, view_count).

    Args:
        index: Positions of the images in the data set, int64 (B,).
        epoch: Number of the epoch.
        seed: Seed of the training.
        augment: See `view_count`.
        limit: None for independent draws from (seed, epoch, image). Else every image has `limit` different views of its
            own, which are the same for every seed, so that a teacher's cached logits serve all seeds; any `limit`
            successive epochs use each of them exactly once.
        image_size: Side of the images, in pixels.
        distorted: See `view_count`.
    """
    total = view_count(augment, image_size, distorted=distorted)
    if limit is None:
        return hashed(index, (seed << 32) ^ (epoch << 1)) % total
    limit = min(limit, total)
    turn = (hashed(index, (seed << 32) ^ 1) + epoch) % limit
    # start + stride * turn modulo total visits different numbers if the stride is coprime to total.
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
    """Return `views_of` for all images 0 ... count - 1: int64 (count,)."""
    return views_of(torch.arange(count), epoch, seed, augment, limit, image_size, distorted=distorted)


def apply_views(
    images: Tensor,
    index: Tensor,
    view: Tensor,
    augment: str,
    image_size: int,
    padding: int | None = None,
    *,
    scale: tuple[float, float] | None = None,
) -> Tensor:
    """Cut the views of some images out of the data set.

    crop_flip and crop move the centre window by up to p = `padding` pixels each way, black outside the image:
    view = (row * (2p + 1) + column) * 2 + flip (crop: without the flip; flip: with p = 0). resized_crop: see
    `crop_boxes`. none: the centre. A view beyond those starts again at the first; `distort` tells them apart.

    Args:
        images: The data set, uint8 (N, S, S, 3), S >= image_size.
        index: Positions of the images, int64 (B,).
        view: Their views, int64 (B,).
        augment: See `view_count`.
        image_size: Side of the views, in pixels.
        padding: How far crops move, in pixels; None for `padding_of`.
        scale: See `crop_boxes`.

    Returns:
        uint8 (B, image_size, image_size, 3).
    """
    if augment == "none":
        return evaluation_view(images.index_select(0, index), image_size).contiguous()
    if augment == "resized_crop":
        return _resized_crops(images.index_select(0, index), view, image_size, scale)
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


def crop_boxes(number: Tensor, image_size: int, scale: tuple[float, float] | None = None) -> Tensor:
    """Return box `number` (B,) of resized_crop, float32 (B, 4): centre x, y and half width, height, in [-1, 1].

    The area is uniform in `scale` of the image's, by default in `crops.default_scale`, the aspect log-uniform in
    [3/4, 4/3], the place uniform. Source: Szegedy et al. 2015; a side that would exceed the image is cut to it, where
    torchvision draws again.
    """
    device = number.device
    if device.type == "mps":  # MPS has no float64
        number = number.cpu()
    draws = torch.stack([hashed(number, key) for key in (11, 13, 17, 19)]).double() / 2.0**63
    least, most = scale or default_scale(image_size)
    area = least + (most - least) * draws[0]
    aspect = torch.exp((2 * draws[1] - 1) * math.log(4 / 3))
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    x, y = (2 * draws[2] - 1) * (1 - width), (2 * draws[3] - 1) * (1 - height)
    return torch.stack([x, y, width, height], dim=1).float().to(device)


def _resized_crops(batch: Tensor, view: Tensor, image_size: int, scale: tuple[float, float] | None) -> Tensor:
    """Cut views = box * 2 + flip, bilinear at pixel centres; torch has no antialiasing with one box per image."""
    x, y, width, height = crop_boxes(view // 2, image_size, scale).unbind(1)
    mirror = 1 - 2.0 * (view % 2)
    zero = torch.zeros_like(x)
    theta = torch.stack([torch.stack([width * mirror, zero, x], 1), torch.stack([zero, height, y], 1)], 1)
    grid = functional.affine_grid(theta, [len(batch), 3, image_size, image_size], align_corners=False)
    sampled = functional.grid_sample(
        batch.permute(0, 3, 1, 2).float(), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return sampled.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def evaluation_view(images: Tensor, image_size: int) -> Tensor:
    """Return the centre of images uint8 (B, S, S, 3): (B, image_size, image_size, 3)."""
    offset = (images.shape[1] - image_size) // 2
    return images[:, offset : offset + image_size, offset : offset + image_size]


def to_float(images: Tensor, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> Tensor:
    """Normalize pixels: (x / 255 - mean) / std. This is the one place where pixels become floats.

    Subtraction and division are single operations, each exactly rounded, so that an image's values do not depend on
    its place in a batch.

    Args:
        images: uint8 (B, H, W, 3).
        mean: Channel means of pixels in [0, 1], (3,); a float32 tensor on the device costs no transfer.
        std: Channel deviations of pixels in [0, 1], (3,).

    Returns:
        float32 (B, 3, H, W), channels_last.
    """
    middle = torch.as_tensor(mean, dtype=torch.float32, device=images.device).view(3, 1, 1) * 255
    spread = torch.as_tensor(std, dtype=torch.float32, device=images.device).view(3, 1, 1) * 255
    return images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last).sub_(middle).div_(spread)
