"""The embedded data: a stratified subset of Fashion-MNIST, read with NumPy and the standard library alone.

For each part the file holds the Paeth residuals of the images (as PNG's filter 4), zlib-compressed, and the labels.
`tools/make_embedded_data.py` made it. Source: Xiao, Rasul, Vollgraf 2017 (MIT licence).
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from compress.core.errors import MissingError, UsageError

EMBEDDED = Path(__file__).parents[1] / "embedded" / "fashion_mnist.npz"
SIDE = 28
CLASSES: tuple[str, ...] = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

# The published constants of the 60,000 training images at 28x28, which networks trained elsewhere on Fashion-MNIST
# expect. Those of the padded images (0.2190, 0.3318 at 32x32) would change with image_size.
MEAN, STD = 0.2860, 0.3530


def paeth_predictor(left: np.ndarray, up: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """Return the int16 neighbour that is nearest to left + up - corner; ties prefer left, then up.

    Source: PNG specification, section 9.4.
    """
    to_left, to_up = np.abs(up - corner), np.abs(left - corner)
    to_corner = np.abs(left + up - 2 * corner)
    return np.where((to_left <= to_up) & (to_left <= to_corner), left, np.where(to_up <= to_corner, up, corner))


def encode_residuals(images: np.ndarray) -> bytes:
    """Compress images uint8 (N, 28, 28): residuals modulo 256, then zlib. The inverse of `decode_residuals`."""
    padded = np.pad(images, ((0, 0), (1, 0), (1, 0))).astype(np.int16)
    residuals = images - paeth_predictor(padded[:, 1:, :-1], padded[:, :-1, 1:], padded[:, :-1, :-1]).astype(np.uint8)
    packer = zlib.compressobj(9, zlib.DEFLATED, 15, 9, zlib.Z_FILTERED)
    return packer.compress(residuals.tobytes()) + packer.flush()


def decode_residuals(blob: bytes, count: int) -> np.ndarray:
    """Decode the bytes of `encode_residuals` to images uint8 (count, 28, 28), pixel by pixel, all images at once."""
    residuals = np.frombuffer(zlib.decompress(blob), np.uint8).reshape(count, SIDE, SIDE)
    residuals = np.ascontiguousarray(residuals.transpose(1, 2, 0)).astype(np.int16)
    grid = np.zeros((SIDE + 1, SIDE + 1, count), np.int16)  # a row and a column of zeros before the first
    for y in range(SIDE):
        for x in range(SIDE):
            grid[y + 1, x + 1] = (residuals[y, x] + paeth_predictor(grid[y + 1, x], grid[y, x + 1], grid[y, x])) & 255
    return np.ascontiguousarray(grid[1:, 1:].transpose(2, 0, 1)).astype(np.uint8)


def load(path: Path = EMBEDDED) -> dict[str, np.ndarray]:
    """Load train_images, test_images uint8 (N, 28, 28) and train_labels, test_labels int64 (N,).

    Raises:
        MissingError: The installation lacks the file.
    """
    require(path)
    with np.load(path, allow_pickle=False) as stored:
        arrays = {f"{part}_labels": stored[f"{part}_labels"].astype(np.int64) for part in ("train", "test")}
        for part in ("train", "test"):
            arrays[f"{part}_images"] = decode_residuals(
                stored[f"{part}_residuals"].tobytes(), len(arrays[f"{part}_labels"])
            )
    return arrays


def require(path: Path = EMBEDDED) -> None:
    """Raise MissingError if the installation lacks the file."""
    if not path.is_file():
        raise MissingError(
            f"the embedded Fashion-MNIST subset is not installed ({path}); "
            "install the package again: pip install --force-reinstall ."
        )


def check_size(size: int) -> None:
    """Raise UsageError for a size that the images do not fit into."""
    if size < SIDE:
        raise UsageError(
            f"data.image_size: {size} is too small for fashion's images of {SIDE}x{SIDE}; "
            f"choose {SIDE} or more (32 is usual)"
        )


def pad_images(images: np.ndarray, size: int) -> np.ndarray:
    """Put images uint8 (N, 28, 28) in the middle of black squares with three equal channels: (N, size, size, 3)."""
    before = (size - SIDE) // 2
    after = size - SIDE - before
    grey = np.pad(images, ((0, 0), (before, after), (before, after)))
    return np.repeat(grey[..., None], 3, axis=3)
