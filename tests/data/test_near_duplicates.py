"""Near-duplicates: planted copies are found, look-alikes are not."""

from __future__ import annotations

import near_duplicates as benchmark
import numpy as np
import pytest
from PIL import Image

from compress.data import near_duplicates, perceptual_hash
from compress.data.sources import fashion


def scenes(count: int, seed: int, side: int = 96) -> np.ndarray:
    """Return images of random smooth shapes under random fine structure, uint8 (count, side, side, 3)."""
    rng, made = np.random.default_rng(seed), []
    for _ in range(count):
        layers = [
            np.asarray(
                Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)).resize(
                    (side, side), Image.Resampling.BICUBIC
                ),
                np.float64,
            )
            for cells in (3, 9, 24)
        ]
        made.append(np.clip(0.5 * layers[0] + 0.35 * layers[1] + 0.15 * layers[2], 0, 255))
    return np.array(made).astype(np.uint8)


TRAIN = scenes(300, 0)


def found(queries: np.ndarray, references: np.ndarray) -> near_duplicates.Pairs:
    return near_duplicates.find(perceptual_hash.thumbnails(queries), perceptual_hash.thumbnails(references))


@pytest.mark.parametrize("change", benchmark.CHANGES)
def test_a_changed_copy_is_found_with_its_original(change: str) -> None:
    copies = benchmark.planted(TRAIN[:60], change, np.random.default_rng(1))
    pairs = found(np.concatenate([copies, scenes(60, 7)]), TRAIN)
    assert len(pairs) >= 58 and (pairs.queries < 60).all()
    assert (pairs.references == pairs.queries).all()


def test_other_images_are_no_near_duplicates() -> None:
    assert len(found(scenes(200, 5), TRAIN)) == 0


def test_equal_images_differ_by_nothing() -> None:
    pairs = found(TRAIN[40:50], TRAIN)
    assert pairs.references.tolist() == list(range(40, 50)) and pairs.difference.max() < 1e-5


def test_colours_count() -> None:
    assert len(found(TRAIN[:20, :, :, [2, 0, 1]], TRAIN)) < 3


def test_frames_of_noise_are_found_in_every_clip() -> None:
    rng = np.random.default_rng(0)
    clips = rng.integers(0, 256, (10, 48, 48, 3))
    frames = np.clip(clips[:, None] + rng.normal(0, 2, (10, 20, 48, 48, 3)), 0, 255).astype(np.uint8)
    pairs = found(frames[:, :4].reshape(-1, 48, 48, 3), frames[:, 4:].reshape(-1, 48, 48, 3))
    assert len(pairs) == 40 and (pairs.queries // 4 == pairs.references // 16).all()


def test_images_without_contrast_are_left_out() -> None:
    flat = np.full((20, 32, 32, 3), 7, np.uint8)
    assert len(found(flat, flat)) == 0
    assert len(found(TRAIN[:0], TRAIN)) == len(found(TRAIN, TRAIN[:0])) == 0


@pytest.mark.slow
@pytest.mark.extended
def test_many_equal_images_do_not_multiply() -> None:
    """One bucket of 40,000 x 40,000 pairs would never end."""
    sample = perceptual_hash.thumbnails(TRAIN[:1])
    many = sample.take(np.zeros(40_000, np.int64))
    assert len(near_duplicates.find(many, many, limit=0.03)) == 40_000


@pytest.mark.slow
def test_fewer_than_one_false_alarm_per_thousand_of_clothes_that_look_alike() -> None:
    arrays = fashion.load()
    train, test = (fashion.pad_images(arrays[f"{part}_images"], 32) for part in ("train", "test"))
    assert len(found(test, train)) < len(test) / 1000
