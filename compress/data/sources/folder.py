"""Photos in class sub-folders: which files there are, and to which class and part they belong.

Two layouts: root/train/<class>/ with root/test/<class>/ (or val), and root/<class>/, from which a test part is carved
off (`folder_split`). Nothing here opens an image; `compress.data.decode` does.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from compress.core.errors import MissingError, UsageError
from compress.core.plural import agree, plural
from compress.core.records.warnings import RunWarning

TEST_NAMES = ("test", "val", "valid", "validation")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
FEW_IMAGES = 10  # a class with fewer is worth a warning


@dataclass(frozen=True)
class ImageFile:
    """An image file: `path` relative to the root, with `/`, and its class number."""

    path: str
    label: int


@dataclass(frozen=True)
class FolderLayout:
    """The classes and files below a root.

    Attributes:
        classes: Class names, sorted.
        train: Image files to train on.
        test: Image files of the test part; None if it must be carved off `train`.
        ignored: Paths of other visible files, by class.
        unused: Names of sub-folders that were left out, such as val beside test.
        cross_links: (path, class) of folders within one class that lead to another class; their images count there.
    """

    classes: tuple[str, ...]
    train: tuple[ImageFile, ...]
    test: tuple[ImageFile, ...] | None
    ignored: tuple[str, ...]
    unused: tuple[str, ...] = ()
    cross_links: tuple[tuple[str, str], ...] = ()


def subfolders(folder: Path) -> list[str]:
    """Return the sorted names of a folder's visible sub-folders."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _may_be_read(path: str) -> bool:
    """Return False for pipes, sockets and devices, which would block; a broken link is left for decoding to report."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return True


@dataclass
class _Walk:
    """The files found below the class folders of one part.

    `class_folders` maps the real path of each class folder to its class, `entered` that of every folder walked so far.
    """

    root: Path
    class_folders: dict[str, str]
    entered: dict[str, str] = field(default_factory=dict)
    images: list[ImageFile] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    cross_links: list[tuple[str, str]] = field(default_factory=list)

    def owner(self, real: str) -> str | None:
        """Return the class that a folder was entered for, else that of the innermost class folder around it."""
        around = (
            self.class_folders[place] for place in (real, *map(str, Path(real).parents)) if place in self.class_folders
        )
        return self.entered.get(real) or next(around, None)


def _files(walk: _Walk, folder: str, name: str) -> list[str]:
    """List the image paths below the folder of class `name`, at any depth; no folder is entered twice."""
    found: list[str] = []
    # A link to one of these would count every image again.
    above = {os.path.realpath(place) for place in (walk.root / folder).absolute().parents}
    for place, below, names in os.walk(walk.root / folder, followlinks=True):
        real, relative = os.path.realpath(place), Path(place).relative_to(walk.root).as_posix()
        owner = walk.owner(real)
        if real in above or real in walk.entered or owner not in (None, name):
            below[:] = []
            if owner is not None and owner != name and real not in above:
                walk.cross_links.append((relative, owner))
            continue
        walk.entered[real] = name
        below[:] = sorted(one for one in below if not one.startswith("."))
        for one in sorted(name for name in names if not name.startswith(".")):
            is_image = one.lower().endswith(IMAGE_SUFFIXES) and _may_be_read(os.path.join(place, one))
            (found if is_image else walk.ignored).append(f"{relative}/{one}")
    return sorted(found)


def _kinds(paths: Sequence[str]) -> str:
    """Summarize other files by suffix, the most common first: `4 .heic, 1 .txt (first: cat/a.heic)`."""
    named = {path: Path(path).suffix.lower() or "without a suffix" for path in paths}
    kinds = Counter("pipe or device" if kind in IMAGE_SUFFIXES else kind for kind in named.values()).most_common()
    first = next((path for path, kind in named.items() if kind == kinds[0][0]), paths[0])
    return (
        f"{', '.join(f'{count:,} {kind}' for kind, count in kinds[:5])}{', ...' if kinds[5:] else ''} (first: {first})"
    )


def _part(root: Path, prefix: str, classes: list[str]) -> _Walk:
    """List the images of one part. Raises UsageError for an empty class or a shared folder."""
    walk = _Walk(root, {})
    for name in classes:
        top = root / prefix / name
        other = walk.class_folders.setdefault(os.path.realpath(top), name)
        if other != name:
            link, kept = (name, other) if top.is_symlink() else (other, name)
            raise UsageError(
                f"{root / prefix / link}: is a link to the folder of class {kept!r}, so its images would count for "
                "both classes; remove the link"
            )
    for label, name in enumerate(classes):
        paths = _files(walk, f"{prefix}{name}", name)
        if not paths:
            raise UsageError(_no_images(walk, prefix, name))
        walk.images += [ImageFile(path, label) for path in paths]
    return walk


def _no_images(walk: _Walk, prefix: str, name: str) -> str:
    """Say that a class has no images, and what is in its folder instead."""
    inside = f"{prefix}{name}/"
    others = [path for path in walk.ignored if path.startswith(inside)]
    beside = f", only {_kinds(others)}" if others else ""
    links = (f", and {path} leads to class {other!r}" for path, other in walk.cross_links if path.startswith(inside))
    beside += next(links, "")
    return (
        f"{walk.root / prefix / name}: no images ({', '.join(IMAGE_SUFFIXES)}) of class {name!r}{beside}; "
        "add some, or remove the folder"
    )


def scan(root: Path) -> FolderLayout:
    """List a root's images and classes, sorted by name, without opening a file.

    Raises:
        MissingError: The root is absent.
        UsageError: There are fewer than two classes, a class is empty, two classes share a folder, or the classes of
            the parts differ.
    """
    if not root.is_dir():
        raise MissingError(
            f"data.root: {root} is not a folder; name the one with a sub-folder of photos for each class: "
            "compress run RECIPE --set data.root=FOLDER"
        )
    folders = subfolders(root)
    split = "train" in folders
    classes = subfolders(root / "train") if split else folders
    _require_classes(root, classes, split)
    train = _part(root, "train/" if split else "", classes)
    present = [name for name in TEST_NAMES if split and name in folders]
    unused = tuple(name for name in folders if split and name != "train" and name not in present[:1])
    if not present:
        return FolderLayout(
            tuple(classes), tuple(train.images), None, tuple(train.ignored), unused, tuple(train.cross_links)
        )
    require_same_classes(root, present[0], classes)
    test = _part(root, f"{present[0]}/", classes)
    ignored, cross_links = (*train.ignored, *test.ignored), (*train.cross_links, *test.cross_links)
    return FolderLayout(tuple(classes), tuple(train.images), tuple(test.images), ignored, unused, cross_links)


def _require_classes(root: Path, classes: list[str], split: bool) -> None:
    """Raise UsageError unless there are two classes, none of which is a test part; `split`: root has a train folder."""
    if not split and classes and set(classes) <= set(TEST_NAMES):
        raise UsageError(
            f"{root}: there is {' and '.join(classes)} but no train sub-folder; "
            f"put the training images into {root / 'train'}"
        )
    beside = sorted({name for name in classes if name in TEST_NAMES}) if not split else []
    if beside:  # taken as a class it would leak the test part into training
        raise UsageError(
            f"{root}: {beside[0]!r} is beside class sub-folders and would be taken for a class; "
            f"put the training classes into {root / 'train'}, so that {root / beside[0]} is the test part"
        )
    if len(classes) < 2:
        raise UsageError(
            f"{root / 'train' if split else root}: {plural(len(classes), 'class sub-folder')}, but a classifier needs "
            "at least two; make one sub-folder of photos for each class"
        )


def require_same_classes(root: Path, part: str, classes: list[str]) -> None:
    """Raise UsageError unless the class folders of root/part are those of root/train, `classes`."""
    found = set(subfolders(root / part))
    absent, extra = sorted(set(classes) - found), sorted(found - set(classes))
    if absent:
        raise UsageError(
            f"{root / part}: no sub-folder for class {absent[0]!r} of {root / 'train'}; "
            "add test images of it, or remove the class"
        )
    if extra:
        raise UsageError(
            f"{root / part}: class {extra[0]!r} is not in {root / 'train'}; "
            f"add training images of it, or remove it from {part}"
        )


def content_stamp(root: Path) -> list[object]:
    """Return path, bytes and modification time (ns) of every image, and what the folders warn about, as JSON.

    This is cheap and reads no pixels; a touched file only means that the set is decoded again.
    """
    layout = scan(root)
    found: list[object] = [layout.ignored, layout.unused, layout.cross_links]
    for image in (*layout.train, *(layout.test or ())):
        try:
            status = (root / image.path).stat()
            found.append((image.path, status.st_size, status.st_mtime_ns))
        except OSError:  # decoding reports it
            found.append((image.path, 0, 0))
    return found


def layout_warnings(layout: FolderLayout) -> list[RunWarning]:
    """Build the warnings about what was left out and about a class with few images."""
    sentences = []
    if layout.ignored:
        files = plural(len(layout.ignored), "file is not an image", "files are not images")
        sentences.append(f"{files} ({', '.join(IMAGE_SUFFIXES)}), left out: {_kinds(layout.ignored)}")
    if layout.cross_links:
        count, (path, other) = len(layout.cross_links), layout.cross_links[0]
        sentences.append(
            f"{plural(count, 'folder')} {agree(count, 'leads', 'lead')} to images of another class, which count only "
            f"there (first: {path}, to class {other!r})"
        )
    if layout.unused:
        sentences.append(f"sub-folders not used: {', '.join(layout.unused)}")
    counts = Counter(image.label for image in layout.train)
    label, fewest = min(counts.items(), key=lambda item: (item[1], item[0]))
    if fewest < FEW_IMAGES:
        sentences.append(f"class {layout.classes[label]!r} has only {plural(fewest, 'image')}")
    return [RunWarning(sentence) for sentence in sentences]
