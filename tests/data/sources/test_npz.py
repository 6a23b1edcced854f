"""Arrays in an .npz file: what is prepared, what is warned about, what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compress import data
from compress.core.errors import UsageError
from compress.data.sources import inspection, npz
from compress.recipe import schema
from tests.support.small_arrays import prepared, random_arrays, records

REAL = os.environ.get("COMPRESS_TEST_DATA")


def test_npz_arrays_are_kept_unchanged(tmp_path: Path) -> None:
    given = random_arrays()
    np.savez(tmp_path / "own.npz", **given)
    made, _ = prepared(schema.Data(source="npz", root="own.npz", image_size=12), tmp_path / "work", tmp_path)
    for part in ("train", "test"):
        assert np.array_equal(data.load_images(getattr(made, f"{part}_images")), given[f"{part}_images"])
        assert np.array_equal(data.load_labels(getattr(made, f"{part}_labels")), given[f"{part}_labels"])
    assert made.classes == ("a", "b", "c")
    assert made.normalization.mean == pytest.approx(given["train_images"].reshape(-1, 3).mean(0) / 255, abs=1e-4)


def test_npz_grey_is_repeated_and_another_size_resized(tmp_path: Path) -> None:
    given = random_arrays(grey=True)
    given["test_images"] = given["test_images"][..., None]
    np.savez(tmp_path / "own.npz", **given)
    made, lines = prepared(schema.Data(source="npz", root=str(tmp_path / "own.npz"), image_size=8), tmp_path / "work")
    images = data.load_images(made.train_images)
    assert images.shape == (30, 8, 8, 3) and np.array_equal(images[..., 0], images[..., 1])
    assert np.array_equal(
        images[4, ..., 0],
        np.asarray(Image.fromarray(given["train_images"][4]).resize((8, 8), Image.Resampling.BILINEAR)),
    )
    assert any("12x12 are resized to 8x8" in line for line in lines)


def test_npz_train_test_overlap_is_a_warning(tmp_path: Path) -> None:
    given = random_arrays()
    given["test_images"][[2, 5]] = given["train_images"][5]  # all of class c
    np.savez(tmp_path / "own.npz", **given)
    made, lines = prepared(schema.Data(source="npz", root="own.npz", image_size=12), tmp_path / "work", tmp_path)
    assert made.cautions == (
        "1 training image is also in the test part (same pixels); kept in both, so test accuracy may be too high",
    )
    assert len(data.load_labels(made.train_labels)) == 30 and not any("also" in line for line in lines)


def test_npz_images_beyond_a_limit_do_not_overlap(tmp_path: Path) -> None:
    given = random_arrays()
    given["test_images"][[2, 5]] = given["train_images"][5]
    given["train_images"][3] = given["train_images"][2]
    np.savez(tmp_path / "own.npz", **given)
    found = {}
    for limit in (3, 29):
        found[limit], _ = prepared(
            schema.Data(source="npz", root="own.npz", image_size=12, limit_train=limit),
            tmp_path / f"work{limit}",
            tmp_path,
        )
    kept = {limit: {tuple(image.ravel()) for image in np.load(made.train_images.path)} for limit, made in found.items()}
    for limit, made in found.items():
        assert bool(made.cautions) == (
            tuple(given["train_images"][5].ravel()) in kept[limit] or len(kept[limit]) < limit
        )
    assert not found[3].cautions and found[29].cautions


def test_npz_the_same_image_in_two_classes_is_a_warning(tmp_path: Path) -> None:
    given = random_arrays()
    given["train_images"][[4, 9]] = given["train_images"][2]  # of classes b, a and c
    given["train_images"][6] = given["train_images"][3]  # both of class a
    given["test_images"][1] = given["train_images"][0]
    np.savez(tmp_path / "own.npz", **given)
    made, _ = prepared(schema.Data(source="npz", root="own.npz", image_size=12), tmp_path / "work", tmp_path)
    assert (
        made.cautions[0]
        == "2 images are in two classes with the same pixels (first: train_images[2] and train_images[4])"
    )


def test_a_class_without_images_is_a_warning(tmp_path: Path) -> None:
    given = random_arrays()
    given["class_names"], given["test_labels"] = np.array(["a", "b", "c", "d"]), np.arange(9) % 2
    np.savez(tmp_path / "own.npz", **given)
    made, _ = prepared(schema.Data(source="npz", root="own.npz", image_size=12), tmp_path / "work", tmp_path)
    assert made.cautions == (
        "class 'd' has no training or validation images",
        "2 classes have no test images: 'c', 'd'",
    )
    limited, _ = prepared(schema.Data(source="fashion", limit_train=20, limit_test=5), tmp_path / "limited")
    assert limited.cautions == ("5 classes have no test images: 'Sandal', 'Shirt', 'Sneaker', ...",)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"test_labels": None}, "no test_labels; the file needs train_images, "),
        (
            {"train_images": np.zeros((30, 12, 12, 3), np.float32)},
            r"train_images is float32 30x12x12x3, but images are uint8 \(N, H, W\)",
        ),
        ({"train_images": np.zeros((30, 12, 12, 4), np.uint8)}, "train_images is uint8 30x12x12x4"),
        (
            {"test_images": np.zeros((0, 12, 12, 3), np.uint8), "test_labels": np.zeros(0, int)},
            "test_images is uint8 0x12x12x3",
        ),
        (
            {"train_labels": np.arange(29) % 3},
            r"train_labels is int64 \(29,\), but 30 images need integers of shape \(30,\)",
        ),
        ({"train_labels": np.arange(30) / 3}, "train_labels is float64"),
        ({"train_labels": np.arange(30) % 4}, "train_labels holds 0 to 3, but 3 class_names allow 0 to 2"),
        ({"test_labels": np.arange(9) % 3 - 1}, "test_labels holds -1 to 1"),
        ({"train_labels": np.arange(30) % 3 - 2}, "train_labels holds -2 to 0, but .* and -1 for an unlabelled image"),
        ({"train_labels": np.full(30, -1)}, "no training image has a label; label some of each class"),
        ({"train_labels": np.arange(30) % 2}, "class 'c' has test images but no training images"),
        (
            {"train_labels": np.zeros(30, int), "test_labels": np.zeros(9, int)},
            "all training images are of class 'a'",
        ),
        ({"class_names": np.array(["a", "b", "a"])}, "class_names holds 'a' twice"),
        ({"class_names": np.array([1, 2, 3])}, "class_names is int64"),
        ({"class_names": np.array(["a", "b", "c"], dtype=object)}, "cannot be read as an .npz of plain arrays"),
    ],
)
def test_a_wrong_npz_is_refused(tmp_path: Path, change: dict[str, np.ndarray | None], sentence: str) -> None:
    given = {key: value for key, value in {**random_arrays(), **change}.items() if value is not None}
    np.savez(tmp_path / "own.npz", **given)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=sentence):
        npz.load(tmp_path / "own.npz")


def test_files_that_are_not_npz_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("hello", encoding="utf-8")
    np.save(tmp_path / "single.npy", np.zeros(3))
    whole = tmp_path / "whole.npz"
    np.savez(whole, **random_arrays())
    (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[:500])
    for name in ("text.npz", "single.npy", "cut.npz"):
        with pytest.raises(UsageError, match=name):
            npz.load(tmp_path / name)
        with pytest.raises(UsageError, match=f"{name}: not an .npz file"):
            inspection.fingerprint(schema.Data(source="npz", root=name), tmp_path)


def cifar100_sheet(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    return pixels.reshape(50, 32, 100, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)


@pytest.mark.skipif(REAL is None, reason="needs COMPRESS_TEST_DATA (CIFAR-100 sheets)")
def test_cifar100_as_npz(tmp_path: Path) -> None:
    folder = Path(str(REAL)) / "cifar100"
    labels = np.load(folder / "labels.npz")
    train, test = cifar100_sheet(folder / "train-00.webp"), cifar100_sheet(folder / "test-00.webp")[:1000]
    np.savez(
        tmp_path / "cifar100.npz",
        train_images=train,
        train_labels=labels["train_labels"][:5000],
        test_images=test,
        test_labels=labels["test_labels"][:1000],
        class_names=labels["class_names"],
    )
    made, _ = prepared(schema.Data(source="npz", root="cifar100.npz", validation=0.1), tmp_path / "work", tmp_path)
    images, stored, train_index, validation_index = data.training_arrays(records(made, 0.1)[0])
    assert np.array_equal(images, train) and len(made.classes) == 100 and made.classes[0] == "apple"
    assert len(validation_index) == 500 and set(stored[train_index]) == set(stored[validation_index]) == set(range(100))
    assert made.normalization.mean == pytest.approx((0.507, 0.487, 0.441), abs=0.006)
    assert made.normalization.std == pytest.approx((0.267, 0.256, 0.276), abs=0.006)
