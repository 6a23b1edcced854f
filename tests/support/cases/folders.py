"""Photo folders as people have them: each function writes one kind below a root, from a seed.

Every image has noise of its own, so that no two files are equal.
"""

from __future__ import annotations

import io
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Colour = tuple[int, int, int]

COLOURS = {"a": (200, 60, 60), "b": (60, 200, 60), "c": (60, 60, 200)}
PARTS = (
    *(("Training", "Testing"), ("Train", "Valid", "Test"), ("seg_train", "seg_test"), ("TRAIN", "TEST")),
    *(("train_images", "val_images"), ("dataset-train", "dataset-test"), ("trainset", "testset"), ("train", "test1")),
)
KINDS = {
    **{"jfif": "JPEG", "jpe": "JPEG", "JPG": "JPEG", "tif": "TIFF", "tiff": "TIFF", "gif": "GIF", "ppm": "PPM"},
    **{"webp": "WEBP", "avif": "AVIF", "bmp": "BMP", "jp2": "JPEG2000", "tga": "TGA", "unknown": "PNG", "": "JPEG"},
}


def image(number: int, *, size: int = 48, colour: Colour | None = None) -> Image.Image:
    """Return image `number`: noise about a colour, the class's or one of its own."""
    random = np.random.default_rng(number)
    base = np.array(colour) if colour else random.integers(30, 220, 3)
    return Image.fromarray(np.clip(base + random.normal(0, 12, (size, size, 3)), 0, 255).astype(np.uint8))


def save(path: Path, number: int, *, size: int = 48, colour: Colour | None = None, kind: str = "") -> None:
    """Write image `number` in the format `kind`, or that of the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image(number, size=size, colour=colour).save(path, kind or None)


def classes(root: Path, count: int, first: int = 0, colours: dict[str, Colour] | None = None) -> Path:
    """Write `count` JPEG files of each class."""
    for label, (name, colour) in enumerate((colours or COLOURS).items()):
        for number in range(count):
            save(root / name / f"{number}.jpg", first + 1000 * label + number, colour=colour)
    return root


def parts(root: Path, names: tuple[str, ...], nested: bool = False) -> Path:
    """Write the three classes into each part; `nested`: in a folder of the same name within it."""
    for number, name in enumerate(names):
        train = "train" in name.lower()
        classes(root / name / (name if nested else ""), 12 if train else 4, first=10_000 * (number + 1))
    return root


def wrapped(root: Path) -> Path:
    """Write what an archive from a Mac unpacks to: one folder around all, and one of resource forks."""
    classes(root / "PetImages", 12, colours={"cat": (120, 90, 60), "dog": (60, 90, 120)})
    forks = root / "__MACOSX" / "PetImages" / "cat"
    forks.mkdir(parents=True)
    (forks / "._0.jpg").write_bytes(b"\0\5\26\7")
    (root / "PetImages" / "cat" / "._0.jpg").write_bytes(b"\0\5\26\7")
    return root


def unicode_names(root: Path) -> Path:
    """Write a training part with composed names and a test part with decomposed ones, as macOS has them."""
    for offset, (form, part) in enumerate((("NFC", "train"), ("NFD", "test"))):
        for label, name in enumerate(("Brötchen", "Käse")):
            for number in range(10):
                path = root / part / unicodedata.normalize(form, name) / f"{number}.jpg"
                save(path, 100 * label + 1000 * offset + number)
    return root


def suffixes(root: Path) -> Path:
    """Write images of many formats, some with no suffix or one that nobody knows."""
    for label, name in enumerate(("cat", "dog")):
        save(root / name / "plain.jpg", label)
        for number, (suffix, kind) in enumerate(KINDS.items(), 2):
            try:
                save(root / name / f"x{suffix and '.'}{suffix}", 100 * label + number, kind=kind)
            except (KeyError, OSError):
                pytest.skip(f"this Pillow does not write {kind}")
    return root


def twelve_bit(root: Path, kind: str = "png") -> Path:
    """Write 12 bits of a camera in 16-bit files; the brightness is the class."""
    random = np.random.default_rng(0)
    for name, top in (("thin", 1200), ("thick", 3900)):
        (root / name).mkdir(parents=True)
        for number in range(20):
            values = np.clip(random.normal(top, 150, (48, 48)), 0, 4095).astype(np.uint16)
            Image.fromarray(values).save(root / name / f"{number}.{kind}")
    return root


def nas(root: Path) -> Path:
    """Write photos with the thumbnails that a NAS keeps beside them."""
    for label, name in enumerate(("cat", "dog")):
        for number in range(8):
            save(root / name / f"{number}.jpg", 100 * label + number, size=96)
            thumbnail = root / name / "@eaDir" / f"{number}.jpg" / "SYNOPHOTO_THUMB_M.jpg"
            thumbnail.parent.mkdir(parents=True)
            image(100 * label + number, size=96).resize((24, 24)).save(thumbnail)
    return root


def one_broken(root: Path) -> Path:
    """Write a small set with an empty file and one that was cut at nine tenths."""
    classes(root, 20, colours={"cat": (120, 90, 60), "dog": (60, 90, 120)})
    (root / "cat" / "empty.jpg").write_bytes(b"")
    whole = io.BytesIO()
    image(5000).save(whole, "JPEG")
    (root / "dog" / "cut.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) * 9 // 10])
    return root


def listed(root: Path, header: str = "file,label,patient") -> Path:
    """Write images in one folder, and their labels into labels.csv."""
    rows = [header]
    for number in range(60):
        save(root / "images" / f"img{number:03d}.jpg", number, colour=COLOURS["ab"[number % 2]])
        rows.append(f"images/img{number:03d}.jpg,{('cat', 'dog')[number % 2]},p{number // 6}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root
