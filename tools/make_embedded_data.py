"""Make fashion_mnist.npz, the embedded subset of Fashion-MNIST, from the complete set.

    python tools/make_embedded_data.py [FOLDER] [--out FILE]

FOLDER holds the four idx files of the set (`train-images-idx3-ubyte.gz` ...), as Debian's package dataset-fashion-mnist
installs them into /usr/share/datasets/fashion-mnist. The subset has 700 training and 500 test images of each class,
seeded, in the order of the complete set; training images come from its training part, test images from its test part.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import zlib
from pathlib import Path

import numpy as np

from compress.data import splits
from compress.data.sources import fashion

SOURCE = Path("/usr/share/datasets/fashion-mnist")
SEED = 2017
PARTS = {"train": ("train", 7_000), "test": ("t10k", 5_000)}
LIMIT_BYTES = 5_000_000


def read_idx(path: Path) -> np.ndarray:
    """Read an idx file of bytes as a uint8 array.

    Source: the format's description on the MNIST page: magic 0, 0, 8, dimensions, sizes.
    """
    content = gzip.decompress(path.read_bytes())
    if content[:3] != b"\x00\x00\x08":
        raise SystemExit(f"{path}: not an idx file of bytes; get the set with: apt-get install dataset-fashion-mnist")
    dimensions = content[3]
    shape = np.frombuffer(content, ">u4", dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def subset(source: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the chosen images uint8 (N, 28, 28) and labels uint8 (N,) of each part."""
    chosen = {}
    for part, (prefix, count) in PARTS.items():
        labels = read_idx(source / f"{prefix}-labels-idx1-ubyte.gz")
        index = splits.stratified(labels, count, SEED)
        chosen[part] = (read_idx(source / f"{prefix}-images-idx3-ubyte.gz")[index], labels[index])
    return chosen


def make(source: Path, out: Path) -> None:
    """Write `out`, read it back, and compare with what was chosen."""
    chosen = subset(source)
    arrays = {}
    for part, (images, labels) in chosen.items():
        arrays[f"{part}_residuals"] = np.frombuffer(fashion.encode_residuals(images), np.uint8)
        arrays[f"{part}_labels"] = labels
    with out.open("wb") as stream:
        # The arrays are compressed already. numpy dates every member 1980, so equal input gives equal bytes.
        np.savez(stream, **arrays)  # type: ignore[arg-type]
    if out.stat().st_size > LIMIT_BYTES:
        raise SystemExit(f"{out}: {out.stat().st_size} bytes, more than {LIMIT_BYTES}; take fewer images")
    back = fashion.load(out)
    for part, (images, labels) in chosen.items():
        if not (np.array_equal(back[f"{part}_images"], images) and np.array_equal(back[f"{part}_labels"], labels)):
            raise SystemExit(f"{out}: the {part} part does not read back as written")


def main() -> None:
    """Make the file and print its size and digest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, nargs="?", default=SOURCE, metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=fashion.EMBEDDED)
    args = parser.parse_args()
    make(args.source, args.out)
    digest = hashlib.sha256(args.out.read_bytes()).hexdigest()
    print(f"{args.out}: {args.out.stat().st_size} bytes, sha256 {digest}, zlib {zlib.ZLIB_RUNTIME_VERSION}")


if __name__ == "__main__":
    main()
