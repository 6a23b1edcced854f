"""Colour jitter and RandAugment on whole batches, compared with torchvision on one image at a time."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from compress.core.records.training import Distortion
from compress.core.stateless_random import hashed
from compress.data.augment import distort, pixel_ops, views

v2 = pytest.importorskip("torchvision.transforms.v2", reason="torchvision is what these operations are compared with")
ops = v2.functional

BOTH = Distortion(0.4, 0.4, 0.4, 0.1, operations=2, magnitude=9)
NAMES = {name: name.title().replace("_", "") for name in distort.OPERATIONS} | {"autocontrast": "AutoContrast"}
SPACE = v2.RandAugment._AUGMENTATION_SPACE
# float32 may round to the next level, mostly where a pixel is its own grey.
BLENDS = (
    "brightness",
    "color",
    "contrast",
    "sharpness",
)
# Processors may differ where a position is nearly half-way between two pixels.
MOVES = (
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
)


def planes(height: int, width: int) -> Tensor:
    """Return smooth, noisy, dark, grey, flat, nearly flat and black images: uint8 (8, 3, height, width)."""
    random = torch.Generator().manual_seed(1)
    smooth = torch.nn.functional.interpolate(
        255 * torch.rand(8, 3, 5, 5, generator=random), (height, width), mode="bicubic"
    ).clamp(0, 255)
    noise = torch.randint(0, 256, smooth.shape, generator=random).float()
    made = torch.where((torch.arange(8) % 2 == 0)[:, None, None, None], smooth, noise)
    made[2] *= 0.4
    made[3] = made[3, :1]
    made[5] = 77
    made[6, 0] = made[6, 0].clamp(40, 41)
    made[7] = 0
    return made.to(torch.uint8)


def expected(images: Tensor, name: str, sign: int, magnitude: int) -> Tensor:
    """Apply one operation as torchvision's RandAugment does."""
    made = v2.RandAugment()
    strengths, signed = SPACE[NAMES[name]]
    strength = strengths(31, *images.shape[2:])
    value = 0.0 if strength is None else float(strength[magnitude]) * (sign if signed else 1)
    return made._apply_image_or_video_transform(
        images, NAMES[name], value, interpolation=made.interpolation, fill=made._fill
    )


@pytest.mark.parametrize("name", distort.OPERATIONS)
def test_every_operation_matches_torchvision(name: str) -> None:
    assert set(NAMES.values()) == set(SPACE)
    number = torch.full((8,), distort.OPERATIONS.index(name))
    for images, magnitude in ((planes(32, 32), 9), (planes(32, 32), 30), (planes(45, 64), 14), (planes(40, 24), 0)):
        for sign in (1, -1):
            made = distort.apply_operation(images, number, torch.full((8,), sign), magnitude)
            apart = (made.int() - expected(images, name, sign, magnitude).int()).abs()
            assert made.dtype == torch.uint8 and (name in MOVES or apart.max() <= (name in BLENDS)), (magnitude, sign)
            assert (apart > 0).float().mean() <= (0.05 if name in BLENDS else 0.002 if name in MOVES else 0)
            if magnitude in (9, 30):
                assert (made != images)[:3].any() != (name == "identity")


@pytest.mark.parametrize(("part", "name"), list(enumerate(("brightness", "contrast", "saturation", "hue"))))
def test_every_part_of_the_jitter_matches_torchvision(part: int, name: str) -> None:
    images, extent = planes(32, 40), 0.4
    ranges = [extent if number == part else 0.0 for number in range(4)]
    for draw in (-1.0, -0.63, 0.0, 0.31, 1.0):
        made = distort.jitter_colors(images, [torch.full((8,), draw)] * 4, ranges)
        wanted = getattr(ops, f"adjust_{name}")(images, draw * extent if name == "hue" else 1 + draw * extent)
        apart = (made.int() - wanted.int()).abs()
        assert apart.max() <= 1 and (apart > 0).float().mean() < 0.05, draw
        if draw == 0.0:
            assert torch.equal(made, images)


def test_a_jitter_range_above_one_starts_at_black() -> None:
    low, high = (distort._factor(torch.tensor([draw]), 1.5).item() for draw in (-1.0, 1.0))
    assert (low, high) == (0.0, 2.5) and v2.ColorJitter(brightness=1.5).brightness == (0.0, 2.5)


def test_a_view_number_selects_its_operations() -> None:
    images, view = planes(32, 32).permute(0, 2, 3, 1).contiguous(), torch.arange(64)
    made = distort.distort_views(images.repeat(8, 1, 1, 1), view, Distortion(operations=2, magnitude=9))
    judged = 0
    for number in range(64):
        wanted, names = images[number % 8].permute(2, 0, 1)[None], []
        for turn in (0, 64):
            names.append(distort.OPERATIONS[int(hashed(view[number], 41 + turn) % 14)])
            wanted = expected(wanted, names[-1], 1 - 2 * int(hashed(view[number], 43 + turn) % 2), 9)
        if not set(names) & set(BLENDS):  # later operations may amplify a level that differs
            judged += 1
            assert ((made[number].int() - wanted[0].permute(1, 2, 0).int()).abs() > 1).float().mean() < 0.005, names
    assert judged > 20


def test_draws_cover_their_ranges_evenly_and_independently() -> None:
    view = torch.arange(views.CROP_BOXES * 2)
    draws = torch.stack([distort.uniform_draws(view, key) for key in distort.JITTER_KEYS])
    assert 0 <= draws.min() < 0.001 and 0.999 < draws.max() < 1 and (draws.mean(1) - 0.5).abs().max() < 0.02
    assert (torch.corrcoef(draws) - torch.eye(4)).abs().max() < 0.05
    chosen = [hashed(view, distort.OPERATION_KEY + distort.KEYS_APART * turn) % 14 for turn in (0, 1)]
    pairs = torch.bincount(chosen[0] * 14 + chosen[1], minlength=196)
    assert pairs.min() > 15 and pairs.max() < 75  # 42 expected


def test_an_image_depends_on_neither_its_batch_nor_the_blocks_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    images, view = planes(20, 24).permute(0, 2, 3, 1).contiguous(), torch.tensor([7, 8000, 3, 3, 0, 91, 2, 5])
    whole = distort.distort_views(images, view, BOTH)
    assert (
        whole.is_contiguous()
        and whole.shape == images.shape
        and torch.equal(whole, distort.distort_views(images, view, BOTH))
    )
    assert torch.equal(distort.distort_views(images[[4, 1]], view[[4, 1]], BOTH), whole[[4, 1]])
    monkeypatch.setitem(distort.BLOCK_VALUES, "cpu", 2 * 20 * 24 * 3)
    assert torch.equal(distort.distort_views(images[:7], view[:7], BOTH), whole[:7])
    assert distort.distort_views(images, view, None) is images


def test_distortion_never_reads_a_value_on_the_host() -> None:
    """On the meta device, copies, synchronization and data-dependent shapes fail, as they would in a recorded step."""
    images, view = (
        torch.empty(4, 16, 16, 3, dtype=torch.uint8, device="meta"),
        torch.empty(4, dtype=torch.int64, device="meta"),
    )
    assert distort.distort_views(images, view, BOTH).shape == images.shape
    with pytest.raises((RuntimeError, NotImplementedError)):
        images[images > 3]  # an example of what fails


def test_equalize_and_autocontrast_count_each_image_for_itself() -> None:
    counts = pixel_ops.histograms(pixel_ops.table_positions(planes(16, 16)))
    assert (
        counts.shape == (8, 3, 256)
        and (counts.sum(2) == 256).all()
        and counts[5, :, 77].tolist() == [256] * 3
        and counts[7, 0, 0] == 256
    )


@pytest.mark.parametrize(
    ("augment", "count"), [("crop_flip", 162 * 16), ("flip", 32), ("crop", 81 * 16), ("resized_crop", 8192)]
)
def test_distorted_views_keep_their_crops(augment: str, count: int) -> None:
    assert views.view_count(augment, distorted=True) == count
    drawn = views.views_of_epoch(4000, 1, 0, augment, distorted=True)
    assert count * 0.8 < drawn.max() < count
    cycle = torch.stack([views.views_of_epoch(50, epoch, 0, augment, 5, distorted=True) for epoch in range(5)])
    assert all(len(set(column.tolist())) == 5 for column in cycle.T)
    if augment != "resized_crop":
        images, index, view = (
            planes(32, 32).permute(0, 2, 3, 1).contiguous(),
            torch.arange(8),
            torch.arange(8) % (count // 16),
        )
        crops = [views.apply_views(images, index, number, augment, 32) for number in (view, view + count // 16)]
        made = [
            distort.distort_views(crop, number, BOTH)
            for crop, number in zip(crops, (view, view + count // 16), strict=True)
        ]
        assert torch.equal(*crops) and not torch.equal(*made)


def test_distortion_is_in_the_cache_key_only_if_set() -> None:
    from compress.core.records.base import key_content

    keys = [key_content(dataclasses.replace(BOTH, **change)) for change in ({}, {"hue": 0.2}, {"magnitude": 10})]
    assert keys[0] != keys[1] != keys[2] != keys[0]
