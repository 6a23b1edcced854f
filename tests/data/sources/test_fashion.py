"""The embedded Fashion-MNIST subset."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from compress.core.errors import MissingError, UsageError
from compress.data.sources import fashion

COMPLETE = Path(os.environ.get("FASHION_MNIST_DIR", "/usr/share/datasets/fashion-mnist"))
SCRIPT = Path(__file__).parents[3] / "tools" / "make_embedded_data.py"
FILE_SHA256 = "9e4743f6dd60cca27c213428893160815c4d379ff0f0ef323c01c09a372b1912"
PIXELS_SHA256 = {
    "train": "6e644e96c694f0393eb0af88ff2fc351c5064bbaf95b08d74abdb8093e664f37",
    "test": "cfa2bad25fd36da8c79b4055e5c7517cfa38998a52273ae63adc3d82df2637e8",
}


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return fashion.load()


@pytest.mark.parametrize(("part", "per_class"), [("train", 700), ("test", 500)])
def test_counts_and_class_balance(arrays: dict[str, np.ndarray], part: str, per_class: int) -> None:
    images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
    assert images.dtype == np.uint8 and images.shape == (10 * per_class, 28, 28)
    assert labels.dtype == np.int64 and np.bincount(labels).tolist() == [per_class] * len(fashion.CLASSES)
    assert hashlib.sha256(images.tobytes()).hexdigest() == PIXELS_SHA256[part]


def test_the_file_is_small_and_as_the_readme_says() -> None:
    content = fashion.EMBEDDED.read_bytes()
    readme = (fashion.EMBEDDED.parent / "README.md").read_text(encoding="utf-8")
    assert len(content) <= 5_000_000
    assert hashlib.sha256(content).hexdigest() == FILE_SHA256
    assert FILE_SHA256 in readme and all(digest in readme for digest in PIXELS_SHA256.values())
    assert "Zalando SE" in (fashion.EMBEDDED.parent / "LICENSE-fashion-mnist.txt").read_text(encoding="utf-8")


def test_no_test_image_is_a_training_image(arrays: dict[str, np.ndarray]) -> None:
    train = {image.tobytes() for image in arrays["train_images"]}
    assert sum(image.tobytes() in train for image in arrays["test_images"]) <= 2


def test_reads_without_pillow_or_torch() -> None:
    code = (
        "import sys\nfor name in ('PIL', 'torch', 'torchvision'): sys.modules[name] = None\n"
        "from compress.data.sources import fashion\nprint(len(fashion.load()['train_images']))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=fashion.EMBEDDED.parents[3]
    )
    assert answer.stdout.strip() == "7000", answer.stderr


def test_encode_and_decode_are_inverse_on_noise() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    assert np.array_equal(fashion.decode_residuals(fashion.encode_residuals(noise), 5), noise)


@pytest.mark.skipif(
    not COMPLETE.is_dir(),
    reason="the complete Fashion-MNIST is not here (Debian: dataset-fashion-mnist, or FASHION_MNIST_DIR)",
)
@pytest.mark.slow
def test_a_rebuild_gives_the_same_file(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    out = tmp_path / "again.npz"
    subprocess.run(
        [sys.executable, str(SCRIPT), str(COMPLETE), "--out", str(out)],
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(fashion.EMBEDDED.parents[3])},
    )
    again = fashion.load(out)
    assert all(np.array_equal(again[key], arrays[key]) for key in arrays)
    # Another zlib packs differently.
    if zlib.ZLIB_RUNTIME_VERSION.startswith("1.") and "ng" not in zlib.ZLIB_RUNTIME_VERSION:
        assert hashlib.sha256(out.read_bytes()).hexdigest() == FILE_SHA256


def test_padding_centres_the_image(arrays: dict[str, np.ndarray]) -> None:
    padded = fashion.pad_images(arrays["train_images"][:3], 33)
    assert padded.shape == (3, 33, 33, 3)
    assert np.array_equal(padded[:, 2:30, 2:30, 1], arrays["train_images"][:3])
    assert padded.sum() == 3 * arrays["train_images"][:3].sum()  # nothing but black around, three equal channels


def test_a_size_below_28_is_refused() -> None:
    with pytest.raises(UsageError, match=r"data\.image_size: 27 is too small for fashion's images of 28x28"):
        fashion.check_size(27)


def test_a_missing_embedded_file_has_a_fix_in_its_message(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"pip install --force-reinstall \.$"):
        fashion.load(tmp_path / "absent.npz")
