"""The prepared data set, and what each stage gets of it."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools

import numpy as np
import pytest
from PIL import Image

from compress import data as arrays
from compress.core.errors import UsageError
from compress.core.records.base import File, key_content, sha256_of
from compress.core.records.training import Distortion
from compress.recipe.schema import ColorJitter, Data, RandAugment
from compress.stages import data


def files_of(record) -> set[str]:
    found = set()
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, File):
            found.add(value.path.name)
        elif dataclasses.is_dataclass(value):
            found |= files_of(value)
    return found


def test_pictures_and_labels_are_the_sources(prepared, data_config):
    with np.load(data_config.root) as stored:
        for part in ("train", "test"):
            assert (np.load(getattr(prepared, f"{part}_images").path) == stored[f"{part}_images"]).all()
            assert (np.load(getattr(prepared, f"{part}_labels").path) == stored[f"{part}_labels"]).all()
    assert (prepared.classes, prepared.image_size, prepared.augment) == (
        ("red", "green", "blue", "grey"),
        16,
        "crop_flip",
    )


def test_only_test_data_names_test_files(prepared, data_config):
    assert files_of(data.training(prepared, data_config)) == {"train_images.npy", "train_labels.npy"}
    assert files_of(data.calibration(prepared, data_config)) == {"train_images.npy", "train_labels.npy"}
    assert files_of(data.test(prepared)) == {"test_images.npy", "test_labels.npy"}


def test_splits_are_disjoint_and_of_the_asked_sizes(prepared, data_config):
    _, labels, train, validation = arrays.training_arrays(data.training(prepared, data_config))
    _, calibration = arrays.calibration_arrays(data.calibration(prepared, data_config))
    assert (len(train), len(validation), len(calibration)) == (160, 40, 32)
    assert not set(train) & set(validation) and set(calibration) <= set(train)
    assert np.bincount(labels[validation]).tolist() == [10] * 4
    assert len(arrays.test_arrays(data.test(prepared))[1]) == 120


def test_calibration_is_no_part_of_what_training_gets(prepared, data_config):
    other = data_config.model_copy(update={"calibration": 7})
    assert data.training(prepared, other) == data.training(prepared, data_config)
    assert data.calibration(prepared, other) != data.calibration(prepared, data_config)


def test_jitter_and_rand_augment_are_part_of_what_training_gets_alone(prepared, data_config):
    asked = data_config.model_copy(
        update={"color_jitter": ColorJitter(hue=0.1, contrast=0.4), "rand_augment": RandAugment()}
    )
    assert data.training(prepared, asked).distortion == Distortion(contrast=0.4, hue=0.1, operations=2, magnitude=9)
    alone = data.training(prepared, data_config.model_copy(update={"color_jitter": ColorJitter(brightness=0.2)}))
    assert alone.distortion == Distortion(brightness=0.2) and data.training(prepared, data_config).distortion is None
    keys = [sha256_of(part) for part in (alone, data.training(prepared, asked), data.training(prepared, data_config))]
    assert len(set(keys)) == 3 and "distortion" not in key_content(data.training(prepared, data_config))


def test_a_source_that_is_not_laid_out_as_it_must_be_is_named(work, data_config, tmp_path):
    np.savez(tmp_path / "bad.npz", train_images=np.zeros((4, 16, 16, 3), np.float32))
    with pytest.raises(UsageError, match="bad.npz"):
        data.run_prepare(
            data_config.model_copy(update={"root": str(tmp_path / "bad.npz")}), context=work, fingerprint="x"
        )


def test_photos_for_timing_are_jpegs_as_they_are_spread_over_the_test_part(tmp_path):
    for part, name, number in itertools.product(("train", "test"), ("blue", "red"), range(6)):
        (tmp_path / part / name).mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8))
        picture.save(tmp_path / part / name / f"{number}.{'png' if number == 5 else 'jpg'}")
    (tmp_path / "test" / "blue" / "0.jpg").write_bytes(b"broken")
    photos = data.photos(Data(source="folder", root=str(tmp_path)), tmp_path, count=4)
    assert [photo.path.relative_to(tmp_path).as_posix() for photo in photos] == [
        "test/blue/2.jpg",
        "test/blue/4.jpg",
        "test/red/1.jpg",
        "test/red/3.jpg",
    ]
    assert [photo.sha256 for photo in photos] == [
        hashlib.sha256(photo.path.read_bytes()).hexdigest() for photo in photos
    ]
    (tmp_path / "test").rename(tmp_path / "val")
    listed = data.photos(Data(source="imagenet", root=str(tmp_path)), tmp_path, count=4)
    assert [photo.path.relative_to(tmp_path / "val") for photo in listed] == [
        photo.path.relative_to(tmp_path / "test") for photo in photos
    ]
    assert data.photos(Data(source="fashion"), None) == ()
