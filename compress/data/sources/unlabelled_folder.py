"""`data.unlabelled`: a folder of photos without labels, beside photos in class sub-folders."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from compress.core.errors import MissingError, UsageError
from compress.core.plural import agree, plural
from compress.core.records.warnings import RunWarning
from compress.data.sources.folder_files import FORMATS, ImageFile, Walk, kinds
from compress.data.sources.folder_split import digests

UNLABELLED = -1


@dataclass(frozen=True)
class UnlabelledImages:
    """The images of the folder, their paths relative to `data.root`, and what was left out."""

    images: tuple[ImageFile, ...]
    warnings: tuple[RunWarning, ...]


def find(root: Path, folder: Path, labelled: tuple[ImageFile, ...]) -> UnlabelledImages:
    """List the images below a folder, at any depth, without those that have a label elsewhere.

    Args:
        root: `data.root`.
        folder: The folder.
        labelled: All images of `data.root`; a file with the bytes of one of them is left out, so that no test image
            is trained on.

    Raises:
        MissingError: The folder is absent.
        UsageError: There is no image in it, or labelled images lie in it.
    """
    walk = _walk(folder)
    inside = next((one for one in labelled if (root / one.path).resolve().is_relative_to(folder.resolve())), None)
    if inside is not None:
        raise UsageError(
            f"data.unlabelled: {folder} holds images with a label (first: {inside.path}); name a folder beside "
            "data.root"
        )
    images = tuple(ImageFile(_from(root, folder / one.path), UNLABELLED) for one in walk.images)
    known = set(digests(root, labelled))
    kept = tuple(one for one, digest in zip(images, digests(root, images), strict=True) if digest not in known)
    sentences = []
    if walk.ignored:
        files = plural(len(walk.ignored), "file is not an image", "files are not images")
        sentences.append(f"data.unlabelled: {files} ({FORMATS}), left out: {kinds(walk.ignored)}")
    if same := len(images) - len(kept):
        have = agree(same, "has the bytes of a labelled image and is", "have the bytes of a labelled image and are")
        sentences.append(f"data.unlabelled: {plural(same, 'image')} {have} left out")
    if not kept:
        raise UsageError(f"data.unlabelled: every image of {folder} is a labelled one, too; leave the key out")
    return UnlabelledImages(kept, tuple(RunWarning(one) for one in sentences))


def content_stamp(root: Path, folder: Path) -> list[object]:
    """Return path, bytes and modification time (ns) of every image, as JSON."""
    found: list[object] = []
    for image in _walk(folder).images:
        try:
            status = (folder / image.path).stat()
            found.append((_from(root, folder / image.path), status.st_size, status.st_mtime_ns))
        except OSError:  # decoding reports it
            found.append((_from(root, folder / image.path), 0, 0))
    return found


def count(folder: Path) -> int:
    """Return the number of images in the folder. Raises MissingError or UsageError, see `find`."""
    return len(_walk(folder).images)


def _walk(folder: Path) -> Walk:
    if not folder.is_dir():
        raise MissingError(f"data.unlabelled: {folder} is not a folder; name one with images")
    walk = Walk(folder)
    if not walk.add("", "unlabelled", UNLABELLED):
        beside = f", only {kinds(walk.ignored)}" if walk.ignored else ""
        raise UsageError(f"data.unlabelled: {folder}: no images ({FORMATS}){beside}; add some, or leave the key out")
    return walk


def _from(root: Path, path: Path) -> str:
    """Return a path relative to the root, with `/`; on another drive the whole path."""
    try:
        return Path(os.path.relpath(path, root)).as_posix()
    except ValueError:
        return path.as_posix()
