"""fashion, cifar and npz: what is prepared, what is refused, and what a fingerprint depends on."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compress import data as product
from compress.core.errors import MissingError, StageError, UsageError
from compress.core.records.base import File
from compress.core.records.training import CalibrationData, Prepared, TestData, TrainingData
from compress.data import npy
from compress.data.sources import fashion, inspection, npz, prepare
from compress.recipe import schema

ROOT = Path(__file__).parents[3]
REAL = os.environ.get("COMPRESS_TEST_DATA")


def prepared(config: schema.Data, work: Path, base: Path = Path("/")) -> tuple[Prepared, list[str]]:
    lines: list[str] = []
    return prepare.prepare_data(config, work, base=base, report=lines.append), lines


def arrays(seed: int = 0, side: int = 12, grey: bool = False) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    shape = (side, side) if grey else (side, side, 3)
    return {
        "train_images": random.integers(0, 256, (30, *shape), dtype=np.uint8),
        "train_labels": np.arange(30) % 3,
        "test_images": random.integers(0, 256, (9, *shape), dtype=np.uint8),
        "test_labels": np.arange(9) % 3,
        "class_names": np.array(["a", "b", "c"]),
    }


# fashion


def test_fashion_is_prepared_with_published_constants(tmp_path: Path) -> None:
    made, lines = prepared(schema.Data(source="fashion", limit_train=200, limit_test=50), tmp_path)
    images = product.load_images(made.train_images)
    assert images.shape == (200, 32, 32, 3) and made.image_size == 32 and made.augment == "crop_flip"
    assert (
        made.classes == fashion.CLASSES
        and made.normalization.mean == (0.2860,) * 3
        and made.normalization.std == (0.3530,) * 3
    )
    assert np.bincount(product.load_labels(made.train_labels)).tolist() == [20] * 10
    assert np.bincount(product.load_labels(made.test_labels)).tolist() == [5] * 10
    assert not images[:, :2].any() and not images[:, :, -2:].any() and np.array_equal(images[..., 0], images[..., 2])
    assert lines == ["data: 200 train images of 10 classes, 32x32", "data: 50 test images of 10 classes, 32x32"]


def test_fashion_refuses_small_images_before_any_work() -> None:
    with pytest.raises(UsageError, match="16 is too small for fashion"):
        inspection.fingerprint(schema.Data(source="fashion", image_size=16), Path("/"))


# npz


def test_npz_is_taken_as_it_is(tmp_path: Path) -> None:
    given = arrays()
    np.savez(tmp_path / "own.npz", **given)
    made, _ = prepared(schema.Data(source="npz", root="own.npz", image_size=12), tmp_path / "work", tmp_path)
    for part in ("train", "test"):
        assert np.array_equal(product.load_images(getattr(made, f"{part}_images")), given[f"{part}_images"])
        assert np.array_equal(product.load_labels(getattr(made, f"{part}_labels")), given[f"{part}_labels"])
    assert made.classes == ("a", "b", "c")
    assert made.normalization.mean == pytest.approx(given["train_images"].reshape(-1, 3).mean(0) / 255, abs=1e-4)


def test_npz_grey_is_repeated_and_another_size_resized(tmp_path: Path) -> None:
    given = arrays(grey=True)
    given["test_images"] = given["test_images"][..., None]
    np.savez(tmp_path / "own.npz", **given)
    made, lines = prepared(schema.Data(source="npz", root=str(tmp_path / "own.npz"), image_size=8), tmp_path / "work")
    images = product.load_images(made.train_images)
    assert images.shape == (30, 8, 8, 3) and np.array_equal(images[..., 0], images[..., 1])
    assert np.array_equal(
        images[4, ..., 0],
        np.asarray(Image.fromarray(given["train_images"][4]).resize((8, 8), Image.Resampling.BILINEAR)),
    )
    assert any("12x12 are resized to 8x8" in line for line in lines)


def test_npz_leak_is_told(tmp_path: Path) -> None:
    given = arrays()
    given["test_images"][[2, 5]] = given["train_images"][5]  # all of class c
    np.savez(tmp_path / "own.npz", **given)
    made, lines = prepared(schema.Data(source="npz", root="own.npz", image_size=12), tmp_path / "work", tmp_path)
    assert made.cautions == (
        "1 training image is also in the test part (same pixels); kept in both, so test accuracy may be too high",
    )
    assert len(product.load_labels(made.train_labels)) == 30 and not any("also" in line for line in lines)


def test_npz_images_that_a_limit_leaves_out_are_no_leak(tmp_path: Path) -> None:
    given = arrays()
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


def test_npz_the_same_image_in_two_classes_is_told(tmp_path: Path) -> None:
    given = arrays()
    given["train_images"][[4, 9]] = given["train_images"][2]  # of classes b, a and c
    given["train_images"][6] = given["train_images"][3]  # both of class a
    given["test_images"][1] = given["train_images"][0]
    np.savez(tmp_path / "own.npz", **given)
    made, _ = prepared(schema.Data(source="npz", root="own.npz", image_size=12), tmp_path / "work", tmp_path)
    assert (
        made.cautions[0]
        == "2 images are in two classes with the same pixels (first: train_images[2] and train_images[4])"
    )


def test_a_class_without_images_is_told(tmp_path: Path) -> None:
    given = arrays()
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
def test_npz_says_what_is_wrong(tmp_path: Path, change: dict[str, np.ndarray | None], sentence: str) -> None:
    given = {key: value for key, value in {**arrays(), **change}.items() if value is not None}
    np.savez(tmp_path / "own.npz", **given)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=sentence):
        npz.load(tmp_path / "own.npz")


def test_files_that_are_no_npz_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("hello", encoding="utf-8")
    np.save(tmp_path / "single.npy", np.zeros(3))
    whole = tmp_path / "whole.npz"
    np.savez(whole, **arrays())
    (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[:500])
    for name in ("text.npz", "single.npy", "cut.npz"):
        with pytest.raises(UsageError, match=name):
            npz.load(tmp_path / name)
        with pytest.raises(UsageError, match=f"{name}: not an .npz file"):
            inspection.fingerprint(schema.Data(source="npz", root=name), tmp_path)


# cifar


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
    assert np.array_equal(product.load_images(made.train_images), pixels[:10])
    assert product.load_labels(made.test_labels).tolist() == [1, 0] * 5
    assert made.classes == ("apple", "aquarium_fish") and made.normalization.mean == (0.5071, 0.4865, 0.4409)


def test_damaged_cifar_is_missing_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cifar(tmp_path / "root", monkeypatch)
    (tmp_path / "root/cifar-100-python/train").write_bytes(b"damaged")
    with pytest.raises(MissingError, match=r"cannot be read .*compress run RECIPE --set data\.download=true$"):
        prepared(schema.Data(source="cifar100", root="root"), tmp_path / "work", tmp_path)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            {"source": "cifar10", "root": "here"},
            r"CIFAR-10 is not in .*here \(no cifar-10-batches-py/data_batch_1\): .*compress "
            r"run RECIPE --set "
            r"data\.download=true$",
        ),
        (
            {"source": "cifar100", "root": "here"},
            r"CIFAR-100 is not in .*here \(no cifar-100-python/train\): .*--set data\.download=true$",
        ),
        (
            {"source": "npz", "root": "absent.npz"},
            r"absent\.npz is not a file; .*: compress run RECIPE --set data\.root=FILE\.npz$",
        ),
        (
            {"source": "folder", "root": "absent"},
            r"absent is not a folder; .*: compress run RECIPE --set data\.root=FOLDER$",
        ),
    ],
)
def test_absent_data_is_exit_3_with_the_command(tmp_path: Path, config: dict[str, str], sentence: str) -> None:
    for act in (
        lambda data: inspection.fingerprint(data, tmp_path),
        lambda data: prepared(data, tmp_path / "work", tmp_path),
    ):
        with pytest.raises(MissingError, match=sentence) as caught:
            act(schema.Data(**config))  # type: ignore[arg-type]
        assert caught.value.exit_code == 3


@pytest.mark.parametrize("source", ["npz", "folder"])
def test_a_source_without_its_root_is_a_recipe_error(source: str) -> None:
    with pytest.raises(UsageError, match=rf"data\.root: source {source} needs one"):
        inspection.fingerprint(schema.Data(source=source), Path("/"))  # type: ignore[arg-type]


# fingerprint


def test_fingerprint_follows_content_and_the_keys_that_matter(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays(0))
    (tmp_path / "copy.npz").write_bytes((tmp_path / "a.npz").read_bytes())
    np.savez(tmp_path / "b.npz", **arrays(1))

    def made(**keys: object) -> str:
        return inspection.fingerprint(schema.Data(**{"source": "npz", "root": "a.npz", **keys}), tmp_path)  # type: ignore[arg-type]

    same = [
        {"root": "copy.npz"},
        {"image_size": 32},
        {"calibration": 5},
        {"validation": 0.5},
        {"split_seed": 1},
        {"augment": "crop_flip"},
        {"test": 0.5},
    ]
    other = [
        {"root": "b.npz"},
        {"image_size": 12},
        {"augment": "crop"},
        {"limit_train": 9},
        {"limit_train": 9, "split_seed": 1},
        {"limit_test": 9},
    ]
    other.append({"normalize": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}})
    assert {made(**keys) for keys in same} == {made()}
    assert len({made(), *(made(**keys) for keys in other)}) == len(other) + 1


def test_fingerprint_imports_neither_torch_nor_pillow() -> None:
    code = (
        "import sys; from pathlib import Path; from compress.recipe import schema; from compress.data.sources import inspection, prepare\n"
        "inspection.fingerprint(schema.Data(source='fashion'), Path('/')); print([n for n in ('torch', 'PIL', 'torchvision') if n "
        "in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=ROOT)
    assert answer.stdout.strip() == "[]", answer.stderr


def test_root_expands_the_home_folder_and_is_relative_to_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    base = tmp_path / "recipes"
    assert inspection.locate_root(schema.Data(source="npz", root="~/x.npz"), base) == tmp_path / "home/x.npz"
    assert inspection.locate_root(schema.Data(source="npz", root="x.npz"), base) == base / "x.npz"
    assert inspection.locate_root(schema.Data(source="cifar10"), base) == tmp_path / "home/.cache/compress/data"


# arrays for the stages


def records(made: Prepared, validation: float = 0.2) -> tuple[TrainingData, TestData]:
    training = TrainingData(
        made.train_images, made.train_labels, made.classes, made.image_size, made.augment, validation, 0
    )
    return training, TestData(made.test_images, made.test_labels, made.classes, made.image_size)


def test_stages_get_disjoint_arrays(tmp_path: Path) -> None:
    given = arrays()
    np.savez(tmp_path / "own.npz", **given)
    made, _ = prepared(schema.Data(source="npz", root="own.npz", image_size=12), tmp_path / "work", tmp_path)
    training, test = records(made)
    images, labels, train, validation = product.training_arrays(training)
    calibration, index = product.calibration_arrays(CalibrationData(training, 6))
    assert len(images) == len(labels) == 30 and len(train) == 24 and len(validation) == 6
    assert set(index) <= set(train) and np.array_equal(calibration, images[index]) and len(index) == 6
    assert np.array_equal(product.test_arrays(test)[0], given["test_images"])


def test_calibration_images_are_the_centre(tmp_path: Path) -> None:
    images = npy.write_array(
        tmp_path / "i.npy", np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    )
    labels = npy.write_array(tmp_path / "l.npy", np.arange(20) % 2)
    made, index = product.calibration_arrays(
        CalibrationData(TrainingData(images, labels, ("a", "b"), 14, "none", 0.2, 0), 5)
    )
    assert np.array_equal(made, np.load(images.path)[index, 1:15, 1:15])


def test_a_file_that_holds_no_images_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 4, 4)))
    with pytest.raises(StageError, match=r"float64 \(3, 4, 4\) are not images"):
        product.load_images(File.of(tmp_path / "x.npy"))


def test_large_image_files_are_mapped_and_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = npy.write_array(tmp_path / "x.npy", np.ones((2, 4, 4, 3), np.uint8))
    monkeypatch.setattr(product, "MEMORY_MAP_BYTES", 10)
    images = product.load_images(file)
    assert isinstance(images, np.memmap)
    images[:] = 7
    images.flush()
    assert File.of(file.path) == file


# files


def test_rows_of_unknown_number_are_read_back_by_numpy(tmp_path: Path) -> None:
    blocks = [np.full((n, 2, 3), n, np.uint8) for n in (1, 4, 2)]
    file = npy.write_rows(tmp_path / "x.npy", iter(blocks), (2, 3), np.uint8)
    assert np.array_equal(np.load(file.path), np.concatenate(blocks)) and file.bytes == npy.HEADER_BYTES + 7 * 6
    assert npy.write_array(tmp_path / "y.npy", np.concatenate(blocks)).sha256 == file.sha256
    assert np.load(npy.write_rows(tmp_path / "z.npy", [], (2, 3), np.int64).path).shape == (0, 2, 3)
    with pytest.raises(StageError, match="does not fit rows"):
        npy.write_rows(tmp_path / "w.npy", blocks, (2, 4), np.uint8)


def test_a_full_disk_is_a_sentence(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(StageError, match="no space left on the disk"):
        npy.write_array(Path("/dev/full"), np.zeros((100_000, 4), np.uint8))


# real images


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
    images, stored, train_index, validation_index = product.training_arrays(records(made, 0.1)[0])
    assert np.array_equal(images, train) and len(made.classes) == 100 and made.classes[0] == "apple"
    assert len(validation_index) == 500 and set(stored[train_index]) == set(stored[validation_index]) == set(range(100))
    assert made.normalization.mean == pytest.approx((0.507, 0.487, 0.441), abs=0.006)
    assert made.normalization.std == pytest.approx((0.267, 0.256, 0.276), abs=0.006)
