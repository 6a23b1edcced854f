"""Views: pure, replayable, and equal to augmenting image by image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from compress.data.augment import views

MASK = (1 << 64) - 1


def random_images(count: int, side: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def naive_crop(image: np.ndarray, dy: int, dx: int, flip: bool, pad: int, size: int) -> np.ndarray:
    canvas = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    start = (image.shape[0] - size) // 2
    window = canvas[start + dy : start + dy + size, start + dx : start + dx + size]
    return window[:, ::-1] if flip else window


def test_crop_flip_equals_padding_and_cropping_one_image_for_all_162_views() -> None:
    images = random_images(3, 32)
    assert views.view_count("crop_flip", 32) == 162
    for number in range(162):
        dy, dx, flip = number // 18, number // 2 % 9, bool(number % 2)
        expected = np.stack([naive_crop(image, dy, dx, flip, 4, 32) for image in images.numpy()])
        made = views.apply_views(images, torch.arange(3), torch.full((3,), number), "crop_flip", 32)
        assert np.array_equal(made.numpy(), expected), number


def test_crop_from_a_larger_image_moves_around_its_centre() -> None:
    images = random_images(2, 20)
    made = views.apply_views(images, torch.tensor([1, 0]), torch.tensor([0, 24]), "crop", 16)
    assert views.view_count("crop", 16) == 25
    # 2 pixels of margin and 2 of padding: offset -2 is the corner.
    assert np.array_equal(made[0].numpy(), images[1, 0:16, 0:16].numpy())
    assert np.array_equal(made[1].numpy(), images[0, 4:20, 4:20].numpy())


def test_flip_has_two_views_the_image_and_its_mirror():
    images = torch.randint(256, (3, 40, 40, 3), dtype=torch.uint8)
    plain, mirrored = (
        views.apply_views(images, torch.arange(3), torch.full((3,), number), "flip", 32) for number in (0, 1)
    )
    assert views.view_count("flip", 32) == 2
    assert torch.equal(plain, views.evaluation_view(images, 32)) and torch.equal(mirrored, plain.flip(2))


@pytest.mark.parametrize("augment", ["none", "flip", "crop", "crop_flip", "resized_crop"])
def test_an_image_does_not_depend_on_its_batch(augment: str) -> None:
    images = random_images(6, 18)
    view = torch.tensor([3, 1, 0, 7, 2, 5]) % views.view_count(augment, 16)
    whole = views.apply_views(images, torch.arange(6), view, augment, 16)
    part = views.apply_views(images, torch.tensor([4, 1]), view[[4, 1]], augment, 16)
    assert whole.dtype == torch.uint8 and whole.shape == (6, 16, 16, 3) and whole.is_contiguous()
    assert torch.equal(part, whole[[4, 1]])


def test_none_is_the_evaluation_view() -> None:
    images = random_images(2, 18)
    made = views.apply_views(images, torch.tensor([1]), torch.tensor([0]), "none", 16)
    assert torch.equal(made, images[1:, 1:17, 1:17]) and torch.equal(made, views.evaluation_view(images[1:], 16))


def test_resized_crop_samples_the_box() -> None:
    # A horizontal ramp stays a ramp under bilinear sampling, so its values show where the box is.
    side, size = 64, 32
    ramp = (torch.arange(side) * 3)[None, None, :, None].expand(1, side, side, 3).to(torch.uint8).contiguous()
    for number in range(40):
        x, _, half, _ = views.crop_boxes(torch.tensor([number]), size)[0].tolist()
        made = views.apply_views(ramp, torch.tensor([0]), torch.tensor([2 * number]), "resized_crop", size)[
            0, size // 2, :, 0
        ].float()
        mirrored = views.apply_views(ramp, torch.tensor([0]), torch.tensor([2 * number + 1]), "resized_crop", size)[
            0, size // 2, :, 0
        ].float()
        centres = x + half * ((torch.arange(size) + 0.5) / size * 2 - 1)
        expected = (((centres + 1) * side - 1) / 2 * 3).clamp(0, 3 * (side - 1))
        assert torch.allclose(made, expected, atol=0.51)
        assert torch.allclose(mirrored, expected.flip(0), atol=0.51)


@pytest.mark.parametrize(
    ("size", "scale", "least", "most"),
    [(32, None, 0.25, 1.0), (224, None, 0.08, 1.0), (32, (0.35, 1.0), 0.35, 1.0), (224, (0.2, 0.5), 0.2, 0.5)],
)
def test_resized_crop_boxes_stay_inside_with_the_stated_areas(size, scale, least, most) -> None:
    x, y, width, height = views.crop_boxes(torch.arange(views.CROP_BOXES), size, scale).unbind(1)
    assert (x.abs() + width).max() <= 1 + 1e-6 and (y.abs() + height).max() <= 1 + 1e-6
    area, aspect = width * height, width / height
    assert least * 0.99 < area.min() < least + 0.02 and most - 0.02 < area.max() <= most + 1e-6
    assert abs(area.mean() - (most + least) / 2) < 0.03
    assert 3 / 4 - 1e-4 <= aspect.min() < 0.76 and 1.3 < aspect.max() <= 4 / 3 + 1e-4


def test_a_view_shows_the_part_that_the_scale_names() -> None:
    images = torch.randint(0, 256, (1, 40, 40, 3)).to(torch.uint8)
    whole = views.apply_views(images, torch.tensor([0]), torch.tensor([6]), "resized_crop", 40, scale=(1.0, 1.0))
    plain, same = (
        views.apply_views(images, torch.tensor([0]), torch.tensor([6]), "resized_crop", 40, scale=scale)
        for scale in (None, (0.25, 1.0))
    )
    assert torch.equal(plain, same) and not torch.equal(plain, whole)


def splitmix64(counter: int, key: int) -> int:
    x = ((counter + key * 0xD1342543DE82EF95) * 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & MASK
    return (x ^ x >> 31) >> 1


@pytest.mark.parametrize("key", [0, 1, (7 << 32) ^ 6, (2**31 << 32) ^ 482])
def test_hash_equals_unsigned_python_arithmetic(key: int) -> None:
    counters = [0, 1, 2, 49_999, 2**40]
    assert views.hashed(torch.tensor(counters), key).tolist() == [splitmix64(counter, key) for counter in counters]


def test_views_of_an_epoch_are_spread_evenly_and_change_with_epoch_and_seed() -> None:
    first = views.views_of_epoch(16_200, 1, 0, "crop_flip")
    counts = torch.bincount(first, minlength=162)
    # Expected: 100 each, with a standard deviation of 10.
    assert first.dtype == torch.int64 and counts.min() > 60 and counts.max() < 140
    for other in (views.views_of_epoch(16_200, 2, 0, "crop_flip"), views.views_of_epoch(16_200, 1, 1, "crop_flip")):
        assert (first == other).float().mean() < 0.012  # 1 / 162 by chance
    assert torch.equal(first, views.views_of_epoch(16_200, 1, 0, "crop_flip"))


def test_views_can_be_replayed_for_a_subset() -> None:
    whole = views.views_of_epoch(1000, 5, 3, "crop_flip", limit=8)
    index = torch.tensor([999, 0, 512])
    assert torch.equal(views.views_of(index, 5, 3, "crop_flip", limit=8), whole[index])


@pytest.mark.parametrize("augment", ["crop", "crop_flip", "resized_crop"])
def test_limited_views_are_per_image_and_used_once_a_cycle(augment: str) -> None:
    limit, count = 7, 200
    cycle = torch.stack([views.views_of_epoch(count, epoch, 0, augment, limit) for epoch in range(4, 4 + limit)])
    sets = [frozenset(column.tolist()) for column in cycle.T]
    assert all(len(own) == limit for own in sets)
    assert len(set(sets)) > count * 0.9  # images do not share their sets
    assert torch.equal(views.views_of_epoch(count, 4 + limit, 0, augment, limit), cycle[0])
    assert 0 <= cycle.min() and cycle.max() < views.view_count(augment)


def test_another_seed_uses_the_same_limited_views_in_another_order() -> None:
    ours = torch.stack([views.views_of_epoch(300, epoch, 0, "crop_flip", 4) for epoch in range(4)])
    theirs = torch.stack([views.views_of_epoch(300, epoch, 9, "crop_flip", 4) for epoch in range(4)])
    assert not torch.equal(ours, theirs)
    assert torch.equal(ours.sort(0).values, theirs.sort(0).values)


def test_a_limit_above_the_count_cycles_through_all_views() -> None:
    cycle = torch.stack([views.views_of_epoch(3, epoch, 0, "crop_flip", 1000, image_size=8) for epoch in range(18)])
    assert all(sorted(column.tolist()) == list(range(18)) for column in cycle.T)  # 3 x 3 offsets, flipped or not
    assert views.views_of_epoch(5, 2, 0, "none", limit=3).tolist() == [0] * 5


def test_to_float_by_hand() -> None:
    images = torch.tensor([[[[0, 128, 255]]]], dtype=torch.uint8)
    made = views.to_float(images, (0.5, 0.25, 0.0), (0.5, 0.1, 2.0))
    assert made.shape == (1, 3, 1, 1) and made.dtype == torch.float32
    assert made.flatten().tolist() == pytest.approx([-1.0, (128 / 255 - 0.25) / 0.1, 0.5], abs=1e-6)


def test_to_float_layout_and_independence_of_batch() -> None:
    images = random_images(5, 17)
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.247, 0.2435, 0.2616])
    made = views.to_float(images, mean, std)
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(made[2:3], views.to_float(images[2:3], mean, std))
    expected = (images.double() / 255 - mean.double()) / std.double()
    assert (made.double() - expected.permute(0, 3, 1, 2)).abs().max() < 2e-6
    assert int(images.sum()) == int(random_images(5, 17).sum())  # the pixels themselves are untouched


def test_flip_is_what_pillow_does() -> None:
    images = random_images(1, 32)
    made = views.apply_views(images, torch.tensor([0]), torch.tensor([(4 * 9 + 4) * 2 + 1]), "crop_flip", 32)
    assert np.array_equal(
        made[0].numpy(), np.asarray(Image.fromarray(images[0].numpy()).transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    )
