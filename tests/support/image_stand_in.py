"""A small stand-in for ImageNet: generated JPEGs of two sizes in its layout, and the same images as shards."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

WNIDS = ("n01440764", "n01443537", "n02102040")
COLOURS = ((200, 60, 60), (60, 200, 60), (60, 60, 200))


def jpeg(label: int, seed: int, size: tuple[int, int] = (48, 36)) -> bytes:
    """Return a JPEG of the class's colour under smooth noise."""
    random = np.random.default_rng(seed)
    noise = Image.fromarray(random.integers(0, 256, (6, 8, 3)).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    pixels = 0.5 * np.asarray(noise, np.float64) + 0.5 * np.array(COLOURS[label])
    stream = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def images(part: str, count: int) -> Iterator[tuple[str, int, bytes]]:
    """Yield name, label and file of `count` images a class, landscape and portrait."""
    for label, wnid in enumerate(WNIDS):
        for number in range(count):
            yield (
                f"{wnid}_{part}_{number:03d}",
                label,
                jpeg(label, 1000 * label + number + 500 * (part == "val"), ((48, 36), (36, 52))[number % 2]),
            )


def folders(root: Path, train: int, val: int) -> Path:
    """Write train/<wnid>/*.JPEG and val/<wnid>/*.JPEG."""
    for part, count in (("train", train), ("val", val)):
        for name, label, content in images(part, count):
            folder = root / part / WNIDS[label]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.JPEG").write_bytes(content)
    return root


def add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to a shard."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    shard.addfile(member, io.BytesIO(content))


def shards(root: Path, train: int, val: int, each: int = 10) -> Path:
    """Write train-000000.tar ... and val-000000.tar ... of `each` samples; labels alternate between .cls and .json."""
    root.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", train), ("val", val)):
        every = list(images(part, count))
        for number in range(-(-len(every) // each)):
            with tarfile.open(root / f"{part}-{number:06d}.tar", "w") as shard:
                for name, label, content in every[number * each : (number + 1) * each]:
                    add(shard, f"{name}.jpg", content)
                    add(
                        shard,
                        f"{name}.cls" if number % 2 == 0 else f"{name}.json",
                        str(label).encode() if number % 2 == 0 else b'{"label": %d}' % label,
                    )
    return root
