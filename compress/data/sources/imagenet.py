"""ImageNet as it is unpacked, and any set in that layout: root/train/<class>/*.JPEG and root/val/<class>/*.JPEG, too large to decode at once.

Classes are the folders of train, sorted: with ImageNet's WordNet ids the order that published weights have.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compress.core.errors import MissingError, UsageError
from compress.data.sources.folder import SUFFIXES, require_same_classes, subfolders
from compress.data.streaming.listing import ListedPart

MEAN, STD = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # of its training pictures, as torchvision's weights expect them
ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}


@dataclass(frozen=True)
class ImageNetFolder:
    """What a root holds. `stamp`: sha256 (hex) of every picture's path, size and modification time; a size may change with its picture alone."""

    classes: tuple[str, ...]
    train: ListedPart
    test: ListedPart
    stamp: str


def scan(root: Path) -> ImageNetFolder:
    """List both parts; reads no pixels, asks the file system for each picture once.

    Raises MissingError where root, train or val is absent; UsageError for a flat val folder, an empty class, or classes that differ.
    """
    for folder in (root, root / "train", root / "val"):
        if not folder.is_dir():
            raise MissingError(_absent(root, folder))
    classes = subfolders(root / "train")
    if len(classes) < 2:
        raise UsageError(
            f"{root / 'train'}: {len(classes)} class sub-folders, but a classifier needs at least two; unpack each class into a folder of its own"
        )
    if not subfolders(root / "val"):
        raise UsageError(
            f"{root / 'val'}: its pictures lie side by side, not in class sub-folders, so nothing says what they show; move each into "
            f"val/<class>/ (for ImageNet's own archive the widely used valprep.sh does so)"
        )
    require_same_classes(root, "val", classes)
    digest = hashlib.sha256()
    train, test = (_part(root, part, classes, digest) for part in ("train", "val"))
    return ImageNetFolder(tuple(classes), train, test, digest.hexdigest())


def paths(root: Path, part: str) -> list[str]:
    """Paths of one part's pictures relative to the root, classes and names in order."""
    return [
        f"{part}/{name}/{file}"
        for name in subfolders(root / part)
        for file in sorted(os.listdir(root / part / name))
        if _picture(file)
    ]


def _picture(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)


def _status(entry: os.DirEntry[str]) -> os.stat_result:
    """Raises UsageError for what is no file: a link that leads nowhere, a pipe."""
    try:
        status = entry.stat()
    except OSError as error:
        raise UsageError(f"{entry.path}: cannot be read ({error.strerror}); repair the link, or remove it") from error
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"{entry.path}: is no file; remove it")
    return status


def _absent(root: Path, folder: Path) -> str:
    """What is missing, and the command that brings it."""
    part = folder.name if folder != root else ""
    archive = root / ARCHIVES.get(part, "")
    if part and archive.is_file():
        return f"{folder} is not there, but {archive.name} is: unpack it first: mkdir {folder} && tar -xf {archive} -C {folder}"
    return f"{folder} is not there; data.root is the folder that holds train/<class>/*.JPEG and val/<class>/*.JPEG: compress run RECIPE --set data.root=FOLDER"


def _part(root: Path, part: str, classes: list[str], digest: hashlib._Hash) -> ListedPart:
    """One part, classes and names in order. Raises UsageError for a class without pictures."""
    paths: list[str] = []
    facts: list[np.ndarray] = []  # of each class int64 (n, 2): bytes, modification time in ns
    for name in classes:
        with os.scandir(root / part / name) as entries:
            found = sorted((one.name, _status(one)) for one in entries if _picture(one.name))
        if not found:
            raise UsageError(
                f"{root / part / name}: no pictures ({', '.join(SUFFIXES)}) of class {name!r}; unpack it again, or remove the folder"
            )
        paths += [f"{part}/{name}/{file}" for file, _ in found]
        facts.append(np.array([(status.st_size, status.st_mtime_ns) for _, status in found], dtype=np.int64))
    numbers = np.concatenate(facts)
    digest.update(b"\n".join(os.fsencode(path) for path in paths) + numbers.tobytes())
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(one) for one in facts])
    every, names = np.arange(len(paths), dtype=np.int64), tuple(paths)
    return ListedPart(names, every, np.zeros_like(every), numbers[:, 0], names, labels)
