"""Photos in class sub-folders: which files there are, and to which class and part they belong.

Two layouts: root/train/<class>/ with root/test/<class>/ (or val), and root/<class>/, from which a test part is carved
off (`folder_split`). `folder_parts` finds the parts, `folder_files` the files. Nothing here decodes an image;
`compress.data.decode` does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from compress.core.errors import CompressError, MissingError, UsageError
from compress.core.plural import agree, plural
from compress.core.records.base import File
from compress.core.records.warnings import RunWarning
from compress.data.sources import folder_list
from compress.data.sources.folder_files import FORMATS, ImageFile, Walk, is_16_bit_png, kinds
from compress.data.sources.folder_parts import Folders, find_parts
from compress.data.sources.unreadable import MOST_LOST, accept
from export.runtime import images

__all__ = ["FolderLayout", "ImageFile", "content_stamp", "layout_warnings", "require_most_files", "scan"]

FEW_IMAGES = 10  # a class with fewer is worth a warning


@dataclass(frozen=True)
class FolderLayout:
    """The classes and files below a root.

    Attributes:
        classes: Class names, sorted, in Unicode's composed form.
        train: Image files to train on.
        test: Image files of the test part; None if it must be carved off `train`.
        ignored: Paths of other visible files, by class.
        lost: Those of them that may be images to the user.
        unused: Names of sub-folders that were left out, such as val beside test.
        cross_links: (path, class) of folders within one class that lead to another class; their images count there.
        left_out: Paths of folders within classes that a system or NAS box wrote.
        notes: Sentences on how the layout was read.
        columns: For each column of a list of images, the value of every image by its path; None: there is no list.
    """

    classes: tuple[str, ...]
    train: tuple[ImageFile, ...]
    test: tuple[ImageFile, ...] | None
    ignored: tuple[str, ...]
    lost: tuple[ImageFile, ...] = ()
    unused: tuple[str, ...] = ()
    cross_links: tuple[tuple[str, str], ...] = ()
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    columns: Mapping[str, Mapping[str, str]] | None = None

    @property
    def files_per_class(self) -> Counter[int]:
        """How many images each class has or lost."""
        return Counter(image.label for image in (*self.train, *(self.test or ()), *self.lost))


def _part(root: Path, classes: Folders) -> Walk:
    """List the images of one part. Raises UsageError for an empty class or a shared folder."""
    walk = Walk(root)
    for name, folders in classes.items():
        for folder in folders:
            walk.claim(folder, name)
    for label, (name, folders) in enumerate(classes.items()):
        if not sum([walk.add(folder, name, label) for folder in folders]):
            raise _no_images(walk, folders[0], name)
    return walk


def _no_images(walk: Walk, folder: str, name: str) -> CompressError:
    """Build the error that a class has no images, with what is in its folder instead."""
    inside = f"{folder}/"
    others = [path for path in walk.ignored if path.startswith(inside)]
    if (heif := _heif(others)) is not None:
        return MissingError(f"{walk.root / folder}: all {len(others)} files of class {name!r} are {heif}")
    beside = f", only {kinds(others)}" if others else ""
    links = (f", and {path} leads to class {other!r}" for path, other in walk.cross_links if path.startswith(inside))
    beside += next(links, "")
    return UsageError(
        f"{walk.root / folder}: no images ({FORMATS}) of class {name!r}{beside}; add some, or remove the folder"
    )


def _heif(paths: list[str]) -> str | None:
    """Say what reads HEIC images, if most of the files are such."""
    count = sum(path.lower().endswith(images.HEIF_SUFFIXES) for path in paths)
    return f"HEIC images; to read them: pip install {images.HEIF_PACKAGE}" if 2 * count > len(paths) else None


def scan(root: Path, labels: str | None = None) -> FolderLayout:
    """List a root's images and classes, sorted by name, without decoding a file.

    Args:
        root: The folder.
        labels: `data.labels`: a list of images below it; None: its sub-folders are the classes.

    Raises:
        MissingError: The root is absent.
        UsageError: There are fewer than two classes, a class is empty, two classes share a folder, the classes of the
            parts differ, or the folders are no classes.
    """
    if not root.is_dir():
        raise MissingError(
            f"data.root: {root} is not a folder; name the one with a sub-folder of photos for each class: "
            "compress run RECIPE --set data.root=FOLDER"
        )
    if labels is not None:
        listed = folder_list.read(root, labels)
        return FolderLayout(
            listed.classes, listed.train, listed.test, ignored=(), notes=listed.notes, columns=listed.columns
        )
    parts = find_parts(root)
    walks = [_part(root, parts.train), *([_part(root, parts.test)] if parts.test is not None else [])]
    return FolderLayout(
        classes=tuple(parts.train),
        train=tuple(walks[0].images),
        test=None if parts.test is None else tuple(walks[1].images),
        ignored=tuple(path for walk in walks for path in walk.ignored),
        lost=tuple(file for walk in walks for file in walk.lost),
        unused=parts.unused,
        cross_links=tuple(link for walk in walks for link in walk.cross_links),
        left_out=tuple(path for walk in walks for path in walk.left_out),
        notes=parts.notes,
    )


def require_most_files(root: Path, layout: FolderLayout, tolerated: float) -> None:
    """Raise an error where more than a tenth of a class's files are no images, and more than is tolerated.

    Args:
        root: Folder that the layout's paths are relative to.
        layout: What the folder holds.
        tolerated: `data.max_unreadable`.
    """
    every = layout.files_per_class
    for label, count in sorted(Counter(file.label for file in layout.lost).items()):
        if count <= max(MOST_LOST, tolerated) * every[label]:
            continue
        paths = [file.path for file in layout.lost if file.label == label]
        name = layout.classes[label]
        what = f"{root}: {count:,} of {every[label]:,} files of class {name!r} are no images that can be read"
        if (heif := _heif(paths)) is not None:
            raise MissingError(f"{what}: {kinds(paths)}; most are {heif}")
        option = accept(count / every[label])
        raise UsageError(f"{what}: {kinds(paths)}; convert or remove them, or leave them out: {option}")


def content_stamp(root: Path, labels: str | None = None) -> list[object]:
    """Return path, bytes and modification time (ns) of every image, and what the folders warn about, as JSON.

    This is cheap and reads no pixels; a touched file only means that the set is decoded again.
    """
    layout = scan(root, labels)
    found: list[object] = [layout.ignored, layout.unused, layout.cross_links]
    found += [[*layout.left_out, *layout.notes]] if layout.left_out or layout.notes else []
    if labels is not None:
        found.append(File.of(folder_list.locate(root, labels)))
    every = (*layout.train, *(layout.test or ()))
    if any(image.path.lower().endswith(".png") and is_16_bit_png(root / image.path) for image in every):
        found.append("one range of values for all images")  # once each was scaled as if it had 16 bits
    for image in every:
        try:
            status = (root / image.path).stat()
            found.append((image.path, status.st_size, status.st_mtime_ns))
        except OSError:  # decoding reports it
            found.append((image.path, 0, 0))
    return found


def _any_heif(layout: FolderLayout) -> bool:
    return any(path.lower().endswith(images.HEIF_SUFFIXES) for path in layout.ignored)


def layout_warnings(layout: FolderLayout) -> list[RunWarning]:
    """Build the warnings about what was left out and about a class with few images."""
    sentences = []
    if layout.ignored:
        files = plural(len(layout.ignored), "file is not an image", "files are not images")
        install = f"; to read HEIC: pip install {images.HEIF_PACKAGE}" if _any_heif(layout) else ""
        sentences.append(f"{files} ({FORMATS}), left out: {kinds(layout.ignored)}{install}")
    if layout.cross_links:
        count, (path, other) = len(layout.cross_links), layout.cross_links[0]
        sentences.append(
            f"{plural(count, 'folder')} {agree(count, 'leads', 'lead')} to images of another class, which count only "
            f"there (first: {path}, to class {other!r})"
        )
    if layout.left_out:
        count = len(layout.left_out)
        sentences.append(f"{plural(count, 'folder')} of the system left out (first: {layout.left_out[0]})")
    sentences += layout.notes
    if layout.unused:
        sentences.append(f"sub-folders not used: {', '.join(layout.unused)}")
    counts = Counter(image.label for image in layout.train)
    label, fewest = min(counts.items(), key=lambda item: (item[1], item[0]))
    if fewest < FEW_IMAGES:
        sentences.append(f"class {layout.classes[label]!r} has only {plural(fewest, 'image')}")
    return [RunWarning(sentence) for sentence in sentences]
