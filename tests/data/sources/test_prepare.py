"""fashion and CIFAR: what is prepared and what is refused."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest

from compress import data
from compress.core.errors import MissingError, UsageError
from compress.data.sources import fashion, inspection
from compress.recipe import schema
from tests.support.small_arrays import prepared


def test_fashion_is_prepared_with_published_constants(tmp_path: Path) -> None:
    made, lines = prepared(schema.Data(source="fashion", limit_train=200, limit_test=50), tmp_path)
    images = data.load_images(made.train_images)
    assert images.shape == (200, 32, 32, 3) and made.image_size == 32 and made.augment == "crop_flip"
    assert (
        made.classes == fashion.CLASSES
        and made.normalization.mean == (0.2860,) * 3
        and made.normalization.std == (0.3530,) * 3
    )
    assert np.bincount(data.load_labels(made.train_labels)).tolist() == [20] * 10
    assert np.bincount(data.load_labels(made.test_labels)).tolist() == [5] * 10
    assert not images[:, :2].any() and not images[:, :, -2:].any() and np.array_equal(images[..., 0], images[..., 2])
    assert lines == ["data: 200 train images of 10 classes, 32x32", "data: 50 test images of 10 classes, 32x32"]


def test_fashion_refuses_small_images_before_any_work() -> None:
    with pytest.raises(UsageError, match="16 is too small for fashion"):
        inspection.fingerprint(schema.Data(source="fashion", image_size=16), Path("/"))


def fake_cifar(root: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """CIFAR-100's own file layout with 20 made-up images; torchvision is told their md5 sums."""
    from torchvision.datasets import CIFAR100

    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    rows = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8)
    contents = {
        "train": {"data": rows[:10], "fine_labels": [0, 1] * 5},
        "test": {"data": rows[10:], "fine_labels": [1, 0] * 5},
        "meta": {"fine_label_names": ["apple", "aquarium_fish"]},
    }
    sums = {}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", {"filename": "meta", "key": "fine_label_names", "md5": sums["meta"]})
    return rows.reshape(20, 3, 32, 32).transpose(0, 2, 3, 1)


def test_cifar_is_read_through_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = fake_cifar(tmp_path / "root", monkeypatch)
    made, _ = prepared(schema.Data(source="cifar100", root="root"), tmp_path / "work", tmp_path)
    assert np.array_equal(data.load_images(made.train_images), pixels[:10])
    assert data.load_labels(made.test_labels).tolist() == [1, 0] * 5
    assert made.classes == ("apple", "aquarium_fish") and made.normalization.mean == (0.5071, 0.4865, 0.4409)


def test_damaged_cifar_is_missing_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cifar(tmp_path / "root", monkeypatch)
    (tmp_path / "root/cifar-100-python/train").write_bytes(b"damaged")
    with pytest.raises(MissingError, match=r"cannot be read .*compress run RECIPE --set data\.download=true$"):
        prepared(schema.Data(source="cifar100", root="root"), tmp_path / "work", tmp_path)
