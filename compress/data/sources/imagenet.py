"""ImageNet as it is unpacked, and any set in that layout: root/train/<class>/*.JPEG and root/val/<class>/*.JPEG.

Such sets are too large to decode at once. Classes are the folders of train, sorted: with ImageNet's WordNet ids, this
is the order that published weights have.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compress.core.errors import MissingError, UsageError
from compress.data.sources.folder_files import FORMATS, is_image, subfolders
from compress.data.sources.folder_parts import Folders, class_folders, match_classes
from compress.data.streaming.listing import ListedPart

# Of ImageNet's training images; the normalization that torchvision's weights expect.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}


@dataclass(frozen=True)
class ImageNetFolder:
    """The classes and files below a root.

    `stamp` is the sha256 (hex) of every image's path, size and modification time.
    """

    classes: tuple[str, ...]
    train: ListedPart
    test: ListedPart
    stamp: str


def scan(root: Path) -> ImageNetFolder:
    """List both parts without reading pixels; the file system is asked for each image once.

    Raises:
        MissingError: root, train or val is absent.
        UsageError: The val folder is flat, a class is empty, or the classes differ.
    """
    for folder in (root, root / "train", root / "val"):
        if not folder.is_dir():
            raise MissingError(_absent(root, folder))
    classes = class_folders(root, "train/")
    if len(classes) < 2:
        raise UsageError(
            f"{root / 'train'}: {len(classes)} class sub-folders, but a classifier needs at least two; "
            "unpack each class into a folder of its own"
        )
    if not subfolders(root / "val"):
        raise UsageError(
            f"{root / 'val'}: its images are not in class sub-folders, so their classes are unknown; move each into "
            "val/<class>/ (for ImageNet's own archive, the widely used valprep.sh does this)"
        )
    tested, _ = match_classes(root, "val/", class_folders(root, "val/"), "train", classes)
    digest = hashlib.sha256()
    train, test = (_part(root, part, digest) for part in (classes, tested))
    return ImageNetFolder(tuple(classes), train, test, digest.hexdigest())


def paths(root: Path, part: str) -> list[str]:
    """Return the paths of one part's images relative to the root, ordered by class and name."""
    return [
        f"{folder}/{file}"
        for folders in class_folders(root, f"{part}/").values()
        for folder in folders
        for file in sorted(os.listdir(root / folder))
        if _is_image(root / folder / file)
    ]


def _is_image(path: str | Path) -> bool:
    return not os.path.basename(path).startswith(".") and is_image(str(path))


def _status(entry: os.DirEntry[str]) -> os.stat_result:
    """Return a file's status. Raises UsageError for a broken link and for what is not a file."""
    try:
        status = entry.stat()
    except OSError as error:
        raise UsageError(f"{entry.path}: cannot be read ({error.strerror}); repair the link, or remove it") from error
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"{entry.path}: is not a file; remove it")
    return status


def _absent(root: Path, folder: Path) -> str:
    """Say what is missing, with the command that brings it."""
    part = folder.name if folder != root else ""
    archive = root / ARCHIVES.get(part, "")
    if part and archive.is_file():
        return (
            f"{folder} does not exist, but {archive.name} does; unpack it first: "
            f"mkdir {folder} && tar -xf {archive} -C {folder}"
        )
    return (
        f"{folder} does not exist; data.root is the folder that holds train/<class>/*.JPEG and val/<class>/*.JPEG: "
        "compress run RECIPE --set data.root=FOLDER"
    )


def _part(root: Path, classes: Folders, digest: hashlib._Hash) -> ListedPart:
    """List one part, ordered by class and name, and add it to `digest`. Raises UsageError for an empty class."""
    paths: list[str] = []
    facts: list[np.ndarray] = []  # for each class int64 (n, 2): bytes, modification time in ns
    for name, folders in classes.items():
        found = [
            (f"{folder}/{one.name}", _status(one))
            for folder in folders
            for one in sorted(os.scandir(root / folder), key=lambda one: one.name)
            if _is_image(one.path)
        ]
        if not found:
            raise UsageError(
                f"{root / folders[0]}: no images ({FORMATS}) of class {name!r}; unpack it again, or remove the folder"
            )
        paths += [path for path, _ in found]
        facts.append(np.array([(status.st_size, status.st_mtime_ns) for _, status in found], dtype=np.int64))
    numbers = np.concatenate(facts)
    digest.update(b"\n".join(os.fsencode(path) for path in paths) + numbers.tobytes())
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(one) for one in facts])
    every, names = np.arange(len(paths), dtype=np.int64), tuple(paths)
    return ListedPart(names, every, np.zeros_like(every), numbers[:, 0], names, labels)
