"""The image files below class folders: found without decoding one, with all that was left out."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from compress.core.errors import MissingError, UsageError
from export.runtime import images

# Folders of systems and NAS boxes, beside those that begin with one of HIDDEN.
SYSTEM_FOLDERS = frozenset({"__macosx", "$recycle.bin", "#recycle", "system volume information", "lost+found"})
HIDDEN = (".", "@")
SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
# Text that is meant as an image, or named like one.
DRAWN_SUFFIXES = (".svg", ".eps", ".ps", ".ai", ".pdf", *images.SUFFIXES, *images.HEIF_SUFFIXES)
# Camera raw files begin like TIFF, of which Pillow would read a thumbnail.
RAW_SUFFIXES = (".nef", ".nrw", ".cr2", ".arw", ".sr2", ".srw", ".dng", ".orf", ".pef", ".rw2", ".3fr", ".iiq", ".erf")
FORMATS = "JPEG, PNG, WebP, TIFF, GIF, BMP, AVIF, ..."
TEXT_BYTES = 512
_CONTROL_BYTES = frozenset(range(32)) - frozenset(b"\t\n\f\r\x1b")


@dataclass(frozen=True)
class ImageFile:
    """An image file: `path` relative to the root, with `/`, and its class number."""

    path: str
    label: int


def is_left_out(folder: str) -> bool:
    """Return whether a folder's name says that it holds no images of the user."""
    return folder.startswith(HIDDEN) or folder.casefold() in SYSTEM_FOLDERS


def subfolders(folder: Path) -> list[str]:
    """Return the sorted names of a folder's sub-folders that may hold the user's images.

    Raises:
        MissingError: A link that may be one of them leads nowhere, such as to a disk that is not mounted.
    """
    entries = [entry for entry in os.scandir(folder) if not is_left_out(entry.name)]
    lost = next((one for one in entries if one.is_symlink() and not os.path.exists(one.path)), None)
    if lost is not None and not Path(lost.name).suffix:
        where = os.readlink(lost.path)
        raise MissingError(f"{lost.path} is a link to {where}, which is not there; mount it, or remove the link")
    return sorted(entry.name for entry in entries if entry.is_dir())


def _head(path: str, count: int) -> bytes:
    try:
        with open(path, "rb") as stream:
            return stream.read(count)
    except OSError:
        return b""


def _may_be_read(path: str) -> bool:
    """Return False for pipes, sockets and devices, which would block; a broken link is left for decoding to report."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return True


def is_image(path: str) -> bool:
    """Return whether a file is taken for an image: by a usual suffix, else by how its content begins.

    What is named like an image and is none, decoding reports. HEIC counts where its package is installed.
    """
    if path.lower().endswith(RAW_SUFFIXES) or not _may_be_read(path):
        return False
    if path.lower().endswith(images.HEIF_SUFFIXES) and images.heif_is_installed():
        return True
    return path.lower().endswith(images.SUFFIXES) or images.looks_like_image(_head(path, images.HEAD_BYTES))


def is_16_bit_png(path: Path) -> bool:
    """Return whether a file is a grey PNG image of 16 bits, by its header."""
    head = _head(str(path), 26)
    return head.startswith(b"\x89PNG") and head[24:26] == b"\x10\0"


def direct_images(folder: Path) -> list[str]:
    """Return the names of the images directly in a folder."""
    with os.scandir(folder) as entries:
        return sorted(
            one.name for one in entries if not one.name.startswith(".") and one.is_file() and is_image(one.path)
        )


def _is_text(path: str) -> bool:
    head = _head(path, TEXT_BYTES)
    return head.startswith((b"\xff\xfe", b"\xfe\xff")) or not _CONTROL_BYTES & set(head)


def _may_be_an_image(path: str) -> bool:
    """Return whether a file that is not read as an image may be one to the user: text is none."""
    return path.lower().endswith(DRAWN_SUFFIXES) or (_may_be_read(path) and not _is_text(path))


def holds_images(folder: Path) -> bool:
    """Return whether there is an image directly in a folder."""
    with os.scandir(folder) as entries:
        return any(not one.name.startswith(".") and one.is_file() and is_image(one.path) for one in entries)


@dataclass
class Walk:
    """The files found below the class folders of one part.

    Attributes:
        root: Folder that paths are relative to.
        class_folders: Real path of each class folder -> its class.
        entered: Real path of every folder walked so far -> the class it was entered for.
        images: The images, by class.
        ignored: Paths of other visible files.
        lost: Those of them that may be images to the user: neither text nor beside an image of their name.
        left_out: Paths of folders that hold no images of the user.
        cross_links: (path, class) of folders within one class that lead to another class; their images count there.
    """

    root: Path
    class_folders: dict[str, str] = field(default_factory=dict)
    entered: dict[str, str] = field(default_factory=dict)
    images: list[ImageFile] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    lost: list[ImageFile] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    cross_links: list[tuple[str, str]] = field(default_factory=list)

    def owner(self, real: str) -> str | None:
        """Return the class that a folder was entered for, else that of the innermost class folder around it."""
        around = (
            self.class_folders[place] for place in (real, *map(str, Path(real).parents)) if place in self.class_folders
        )
        return self.entered.get(real) or next(around, None)

    def claim(self, folder: str, name: str) -> None:
        """Note the folder of a class. Raises UsageError where it is another class's."""
        other = self.class_folders.setdefault(os.path.realpath(self.root / folder), name)
        if other != name:
            top = self.root / folder
            link, kept = (top, other) if top.is_symlink() else (top.with_name(other), name)
            raise UsageError(
                f"{link}: is a link to the folder of class {kept!r}, so its images would count for both classes; "
                "remove the link"
            )

    def add(self, folder: str, name: str, label: int) -> int:
        """Add the images below a folder of class `name`, at any depth, and return how many; none is entered twice."""
        found: list[str] = []
        # A link to one of these would count every image again.
        above = {os.path.realpath(place) for place in (self.root / folder).absolute().parents}
        for place, below, names in os.walk(self.root / folder, followlinks=True):
            real, relative = os.path.realpath(place), Path(place).relative_to(self.root).as_posix()
            owner = self.owner(real)
            if real in above or real in self.entered or owner not in (None, name):
                below[:] = []
                if owner is not None and owner != name and real not in above:
                    self.cross_links.append((relative, owner))
                continue
            self.entered[real] = name
            self.left_out += [f"{relative}/{one}" for one in sorted(below) if is_left_out(one) and one[0] != "."]
            below[:] = sorted(one for one in below if not is_left_out(one))
            shown = sorted(one for one in names if not one.startswith("."))
            found += self._add_files(place, relative, shown, label)
        self.images += [ImageFile(path, label) for path in sorted(found)]
        return len(found)

    def _add_files(self, place: str, relative: str, names: list[str], label: int) -> list[str]:
        """Return the paths of the images among the files of one folder, and note the others."""
        chosen = [name for name in names if is_image(os.path.join(place, name))]
        others = sorted(set(names) - set(chosen))
        stems = {Path(name).stem for name in chosen}
        self.ignored += [f"{relative}/{name}" for name in others]
        alone = [name for name in others if Path(name).stem not in stems and name.casefold() not in SYSTEM_FILES]
        self.lost += [
            ImageFile(f"{relative}/{name}", label) for name in alone if _may_be_an_image(os.path.join(place, name))
        ]
        return [f"{relative}/{name}" for name in chosen]


def kinds(paths: Sequence[str]) -> str:
    """Summarize other files by suffix, the most common first: `4 .heic, 1 .txt (first: cat/a.heic)`."""
    named = {path: Path(path).suffix.lower() or "without a suffix" for path in paths}
    counted = Counter("pipe or device" if kind in images.SUFFIXES else kind for kind in named.values()).most_common()
    first = next((path for path, kind in named.items() if kind == counted[0][0]), paths[0])
    shown = ", ".join(f"{count:,} {kind}" for kind, count in counted[:5])
    return f"{shown}{', ...' if counted[5:] else ''} (first: {first})"
