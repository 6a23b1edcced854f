"""Prepared files as arrays for the stages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compress import data
from compress.core.errors import StageError
from compress.core.records.base import File
from compress.core.records.training import CalibrationData, TrainingData
from compress.data import npy
from compress.recipe import schema
from tests.support.small_arrays import prepared, random_arrays, records


def test_stages_get_disjoint_arrays(tmp_path: Path) -> None:
    given = random_arrays()
    np.savez(tmp_path / "own.npz", **given)
    made, _ = prepared(schema.Data(source="npz", root="own.npz", image_size=12), tmp_path / "work", tmp_path)
    training, test = records(made)
    images, labels, train, validation = data.training_arrays(training)
    calibration, index = data.calibration_arrays(CalibrationData(training, 6))
    assert len(images) == len(labels) == 30 and len(train) == 24 and len(validation) == 6
    assert set(index) <= set(train) and np.array_equal(calibration, images[index]) and len(index) == 6
    assert np.array_equal(data.test_arrays(test)[0], given["test_images"])


def test_calibration_images_are_the_centre(tmp_path: Path) -> None:
    images = npy.write_array(
        tmp_path / "i.npy", np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    )
    labels = npy.write_array(tmp_path / "l.npy", np.arange(20) % 2)
    made, index = data.calibration_arrays(
        CalibrationData(TrainingData(images, labels, ("a", "b"), 14, "none", 0.2, 0), 5)
    )
    assert np.array_equal(made, np.load(images.path)[index, 1:15, 1:15])


def test_a_prepared_file_without_images_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 4, 4)))
    with pytest.raises(StageError, match=r"float64 \(3, 4, 4\) are not images"):
        data.load_images(File.of(tmp_path / "x.npy"))


def test_large_image_files_are_mapped_and_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = npy.write_array(tmp_path / "x.npy", np.ones((2, 4, 4, 3), np.uint8))
    monkeypatch.setattr(data, "MEMORY_MAP_BYTES", 10)
    images = data.load_images(file)
    assert isinstance(images, np.memmap)
    images[:] = 7
    images.flush()
    assert File.of(file.path) == file
