"""Training views cut from image files: boxes, flips, EXIF orientation."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from compress.core.stateless_random import hashed, hashed_int
from compress.data.augment import views
from compress.data.augment.crops import crop_box, decode_training_view
from tests.support import image_stand_in


def test_hashed_int_equals_hashed_tensors() -> None:
    counters = torch.tensor([0, 1, -5, 2**40, 2**62])
    for key in (0, 3, 19 + 32 * 9, (7 << 32) ^ 4):
        assert hashed(counters, key).tolist() == [hashed_int(int(counter), key) for counter in counters]


def test_boxes_have_the_papers_areas_and_aspects() -> None:
    boxes = np.array([crop_box(number, 500, 375) for number in range(4000)])
    left, top, width, height = boxes.T
    assert (
        (left >= 0).all()
        and (top >= 0).all()
        and (left + width <= 500 + 1e-9).all()
        and (top + height <= 375 + 1e-9).all()
    )
    area, aspect = width * height / (500 * 375), width / height
    assert (
        area.min() >= 0.08 - 1e-9 and area.max() > 0.95 and 0.75 - 1e-9 <= aspect.min() < aspect.max() <= 4 / 3 + 1e-9
    )
    logs = np.log([box[2] / box[3] for box in (crop_box(number, 400, 400) for number in range(4000))])
    assert abs(logs.mean()) < 0.02  # log-uniform: portrait as often as landscape
    # 6,000 draws of torchvision's RandomResizedCrop on such an image:
    # area 0.432 +- 0.218, log of the aspect 0.027 +- 0.164.
    assert (area.mean(), area.std()) == pytest.approx((0.432, 0.218), abs=0.015)
    assert (np.log(aspect).mean(), np.log(aspect).std()) == pytest.approx((0.027, 0.164), abs=0.015)
    assert crop_box(5, 1000, 10) == ((1000 - 40 / 3) / 2, 0.0, 40 / 3, 10)  # no box fits: the centre
    assert views.view_count("resized_crop", 224) == 8192


def test_a_view_is_its_box_resized_and_flipped() -> None:
    content = image_stand_in.jpeg(1, 3, (300, 200))
    left, top, width, height = crop_box(17, 300, 200, 0.25)
    with Image.open(io.BytesIO(content)) as image:
        plain = image.convert("RGB").resize(
            (16, 16), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height)
        )
    straight, mirrored = (decode_training_view(content, 2 * 17 + flip, 16) for flip in (0, 1))
    assert np.array_equal(straight, mirrored[:, ::-1])
    assert np.array_equal(straight, decode_training_view(content, 2 * 17, 16, (0.25, 1.0)))  # the papers'
    assert not np.array_equal(straight, decode_training_view(content, 2 * 17, 16, (0.35, 1.0)))
    # The JPEG was decoded at a smaller scale.
    assert np.abs(straight.astype(int) - np.asarray(plain).astype(int)).mean() < 2
    whole = decode_training_view(content, 2 * 17, 150)
    with Image.open(io.BytesIO(content)) as image:
        expected = image.resize((150, 150), Image.Resampling.BILINEAR, box=crop_rectangle(17))
    assert np.array_equal(whole, np.asarray(expected))  # too small for that: decoded at full scale


def crop_rectangle(number: int) -> tuple[float, float, float, float]:
    left, top, width, height = crop_box(number, 300, 200)
    return left, top, left + width, top + height


def test_a_rotated_photo_is_cropped_upright() -> None:
    upright = Image.open(io.BytesIO(image_stand_in.jpeg(0, 1, (60, 90))))
    turned, stream = upright.transpose(Image.Transpose.ROTATE_90), io.BytesIO()
    tags = Image.Exif()
    tags[0x0112] = 6  # rotate clockwise
    turned.save(stream, "JPEG", quality=95, exif=tags)
    plain = io.BytesIO()
    upright.save(plain, "JPEG", quality=95)
    one, other = (decode_training_view(file.getvalue(), 40, 24).astype(int) for file in (stream, plain))
    assert np.abs(one - other).mean() < 2
