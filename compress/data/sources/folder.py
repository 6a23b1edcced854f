"""Photos in class sub-folders: root/train/<class>/ with root/test/<class>/ (or val), or root/<class>/ with a test part carved off.

This half finds the files and decides what each is for; `pictures.py` decodes them.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from compress.core.errors import MissingError, UsageError
from compress.core.records.warnings import RunWarning
from compress.core.text import agree, plural
from compress.data import quality_warnings
from compress.data.splits import allocate

TEST_NAMES = ("test", "val", "valid", "validation")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True)
class ImageFile:
    """A file of the set: `path` relative to the root with `/`, and its class number."""

    path: str
    label: int


@dataclass(frozen=True)
class FolderLayout:
    """What a root holds. `test` is None where a test part must be carved from `train`; `ignored`: other visible files, by class."""

    classes: tuple[str, ...]
    train: tuple[ImageFile, ...]
    test: tuple[ImageFile, ...] | None
    ignored: tuple[str, ...]
    unused: tuple[str, ...] = ()  # sub-folders that were left out, such as val beside test
    strayed: tuple[
        tuple[str, str], ...
    ] = ()  # (path, class): folders within one class that lead to another's, where alone they count


def subfolders(folder: Path) -> list[str]:
    """Sorted names of a folder's visible sub-folders."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _may_be_read(path: str) -> bool:
    """False for pipes, sockets and devices, which would be waited for. A link that leads nowhere may: decoding names it."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return True


@dataclass
class _Walk:
    """What the class folders of one part hold. `tops`: real paths of the class folders; `entered`: of all folders that were walked; both -> class."""

    root: Path
    tops: dict[str, str]
    entered: dict[str, str] = field(default_factory=dict)
    pictures: list[ImageFile] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    strayed: list[tuple[str, str]] = field(default_factory=list)

    def owner(self, real: str) -> str | None:
        """The class that a folder's pictures count for: the one that it was entered for, else that of the innermost class folder around it."""
        around = (self.tops[place] for place in (real, *map(str, Path(real).parents)) if place in self.tops)
        return self.entered.get(real) or next(around, None)


def _files(walk: _Walk, folder: str, name: str) -> list[str]:
    """Sorted picture paths relative to the root below the folder of class `name`, at any depth; no folder is entered twice."""
    found: list[str] = []
    above = {
        os.path.realpath(place) for place in (walk.root / folder).absolute().parents
    }  # a link to one of them would count every picture again
    for place, below, names in os.walk(walk.root / folder, followlinks=True):
        real, relative = os.path.realpath(place), Path(place).relative_to(walk.root).as_posix()
        owner = walk.owner(real)
        if real in above or real in walk.entered or owner not in (None, name):
            below[:] = []
            if owner is not None and owner != name and real not in above:
                walk.strayed.append((relative, owner))
            continue
        walk.entered[real] = name
        below[:] = sorted(one for one in below if not one.startswith("."))
        for one in sorted(name for name in names if not name.startswith(".")):
            is_picture = one.lower().endswith(SUFFIXES) and _may_be_read(os.path.join(place, one))
            (found if is_picture else walk.ignored).append(f"{relative}/{one}")
    return sorted(found)


def _kinds(paths: Sequence[str]) -> str:
    """`4 .heic, 1 .txt (first: cat/a.heic)`: files that are no pictures by their suffix, the commonest first."""
    named = {path: Path(path).suffix.lower() or "without a suffix" for path in paths}
    kinds = Counter("pipe or device" if kind in SUFFIXES else kind for kind in named.values()).most_common()
    first = next((path for path, kind in named.items() if kind == kinds[0][0]), paths[0])
    return (
        f"{', '.join(f'{count:,} {kind}' for kind, count in kinds[:5])}{', ...' if kinds[5:] else ''} (first: {first})"
    )


def _part(root: Path, prefix: str, classes: list[str]) -> _Walk:
    """All pictures of one part. Raises UsageError for a class without any, and for two classes in one folder."""
    walk = _Walk(root, {})
    for name in classes:
        top = root / prefix / name
        other = walk.tops.setdefault(os.path.realpath(top), name)
        if other != name:
            link, kept = (name, other) if top.is_symlink() else (other, name)
            raise UsageError(
                f"{root / prefix / link}: is a link to the folder of class {kept!r}, so its pictures would count for both; remove the link"
            )
    for label, name in enumerate(classes):
        paths = _files(walk, f"{prefix}{name}", name)
        if not paths:
            others = [path for path in walk.ignored if path.startswith(f"{prefix}{name}/")]
            beside = f" beside {_kinds(others)}" if others else ""
            beside += next(
                (
                    f" beside {path}, which leads to class {other!r}"
                    for path, other in walk.strayed
                    if path.startswith(f"{prefix}{name}/")
                ),
                "",
            )
            raise UsageError(
                f"{root / prefix / name}: no pictures ({', '.join(SUFFIXES)}) of class {name!r}{beside}; add some, or remove the folder"
            )
        walk.pictures += [ImageFile(path, label) for path in paths]
    return walk


def scan(root: Path) -> FolderLayout:
    """List a root's pictures and classes (sorted by name) without opening a file.

    Raises MissingError where the root is absent; UsageError for fewer than two classes, an empty class, two classes in one folder, or parts
    whose classes differ.
    """
    if not root.is_dir():
        raise MissingError(
            f"data.root: {root} is not a folder; name the one with a sub-folder of photos for each class: compress run RECIPE --set "
            f"data.root=FOLDER"
        )
    folders = subfolders(root)
    split = "train" in folders
    classes = subfolders(root / "train") if split else folders
    if not split and classes and set(classes) <= set(TEST_NAMES):
        raise UsageError(
            f"{root}: there is {' and '.join(classes)} but no train sub-folder; put the training pictures into {root / 'train'}"
        )
    beside = sorted({name for name in classes if name in TEST_NAMES}) if not split else []
    if beside:  # taken as a class it would leak the test part into training
        raise UsageError(
            f"{root}: {beside[0]!r} stands beside class sub-folders and would be taken for a class; put the training classes into {root / 'train'}, "
            f"so that {root / beside[0]} is the test part"
        )
    if len(classes) < 2:
        raise UsageError(
            f"{root / 'train' if split else root}: {plural(len(classes), 'class sub-folder')}, but a "
            f"classifier needs at least two; "
            "make one sub-folder of photos for each class"
        )
    train = _part(root, "train/" if split else "", classes)
    present = [name for name in TEST_NAMES if split and name in folders]
    unused = tuple(name for name in folders if split and name != "train" and name not in present[:1])
    if not present:
        return FolderLayout(
            tuple(classes), tuple(train.pictures), None, tuple(train.ignored), unused, tuple(train.strayed)
        )
    require_same_classes(root, present[0], classes)
    test = _part(root, f"{present[0]}/", classes)
    ignored, strayed = (*train.ignored, *test.ignored), (*train.strayed, *test.strayed)
    return FolderLayout(tuple(classes), tuple(train.pictures), tuple(test.pictures), ignored, unused, strayed)


def require_same_classes(root: Path, part: str, classes: list[str]) -> None:
    """Raise UsageError unless the part's class folders are train's."""
    found = set(subfolders(root / part))
    absent, extra = sorted(set(classes) - found), sorted(found - set(classes))
    if absent:
        raise UsageError(
            f"{root / part}: no sub-folder for class {absent[0]!r} of {root / 'train'}; add test pictures of it, or remove the class"
        )
    if extra:
        raise UsageError(
            f"{root / part}: class {extra[0]!r} is not in {root / 'train'}; add training pictures of it, or remove it from {part}"
        )


def content_stamp(root: Path) -> list[object]:
    """(path, bytes, modification time in ns) of every picture, and what else there is to be said of the folders, as JSON.

    Cheap, reads no pixels; a touched file only means decoding again.
    """
    layout = scan(root)
    found: list[object] = [layout.ignored, layout.unused, layout.strayed]
    for picture in (*layout.train, *(layout.test or ())):
        try:
            status = (root / picture.path).stat()
            found.append((picture.path, status.st_size, status.st_mtime_ns))
        except OSError:  # decoding names it
            found.append((picture.path, 0, 0))
    return found


def _digest(root: Path, picture: ImageFile) -> str:
    """sha256 of a file's bytes; a file that is empty or cannot be read counts as its path (decoding then names it)."""
    try:
        content = (root / picture.path).read_bytes()
    except OSError:
        content = b""
    return hashlib.sha256(content).hexdigest() if content else f"unreadable {picture.path}"


def digests(root: Path, pictures: tuple[ImageFile, ...]) -> list[str]:
    """sha256 of every file's bytes, in order."""
    with ThreadPoolExecutor(min(16, (os.cpu_count() or 1) + 1)) as pool:
        return list(pool.map(lambda picture: _digest(root, picture), pictures, chunksize=1))


def _tested(sizes: np.ndarray, test: float, classes: tuple[str, ...]) -> np.ndarray:
    """How many of each class's distinct pictures (G,) the test part takes. Raises UsageError where a class would be in one part only."""
    if sizes.min() < 2:
        raise UsageError(
            f"data.test: class {classes[sizes.argmin()]!r} has one distinct picture only, so no test part can be carved off; add "
            f"pictures of it"
        )
    count = max(round(sizes.sum() * test), len(classes)) if test < 1 else int(test)
    if not len(classes) <= count <= sizes.sum() - len(classes):
        raise UsageError(
            f"data.test: {test} of {sizes.sum()} distinct pictures cannot hold every one of {len(classes)} classes in both parts; "
            f"choose between {len(classes)} and {sizes.sum() - len(classes)} pictures"
        )
    return allocate(sizes, count, least=1, leave=1)


def training_labels(layout: FolderLayout, test: float) -> np.ndarray:
    """Labels int64 (N,) of the training part, were all files different pictures. Raises UsageError where no test part can be carved off."""
    labels = np.array([picture.label for picture in layout.train], dtype=np.int64)
    if layout.test is not None:
        return labels
    sizes = np.bincount(labels, minlength=len(layout.classes))
    return np.repeat(np.arange(len(sizes), dtype=np.int64), sizes - _tested(sizes, test, layout.classes))


def _chosen_for_test(
    labels: np.ndarray, test: float, hashes: list[str], seed: int, classes: tuple[str, ...]
) -> set[tuple[int, str]]:
    """(label, hash) of the contents that go to the test part: for each class the lowest of sha256(seed, content)."""
    contents = [
        sorted({digest for digest, other in zip(hashes, labels, strict=True) if other == label})
        for label in range(len(classes))
    ]
    chosen = set()
    for label, (group, taken) in enumerate(
        zip(contents, _tested(np.array([len(group) for group in contents]), test, classes), strict=True)
    ):
        ranked = sorted(group, key=lambda digest: hashlib.sha256(f"{seed} {digest}".encode()).hexdigest())
        chosen |= {(label, digest) for digest in ranked[:taken]}
    return chosen


def split_parts(
    root: Path, layout: FolderLayout, test: float, seed: int
) -> tuple[list[ImageFile], list[ImageFile], list[RunWarning], list[RunWarning]]:
    """(train, test, sentences on pictures in two classes, on pictures of both parts): a carved test part follows the files' content, not their names,
    and no content is in both parts.

    Raises UsageError where a class is too small to be in both.
    """
    hashes, tested = digests(root, layout.train), list[str]()
    if layout.test is None:
        labels = np.array([picture.label for picture in layout.train])
        chosen = _chosen_for_test(labels, test, hashes, seed, layout.classes)
        held_out = [(picture.label, digest) in chosen for picture, digest in zip(layout.train, hashes, strict=True)]
        test_part = [picture for picture, held in zip(layout.train, held_out, strict=True) if held]
        test_hashes = {digest for digest, held in zip(hashes, held_out, strict=True) if held}
    else:
        held_out = [False] * len(layout.train)
        test_part = list(layout.test)
        tested = digests(root, layout.test)
        test_hashes = set(tested)
    leaked = [digest in test_hashes and not held for digest, held in zip(hashes, held_out, strict=True)]
    train = [
        picture for picture, held, leak in zip(layout.train, held_out, leaked, strict=True) if not held and not leak
    ]
    gone = set(range(len(layout.classes))) - {picture.label for picture in train}
    if gone:
        raise UsageError(
            f"{root}: every training picture of class {layout.classes[min(gone)]!r} is in the test part too; give the parts "
            f"different pictures"
        )
    every = zip((*layout.train, *(layout.test or ())), [*hashes, *tested], strict=True)
    twins = quality_warnings.duplicates_across_classes(
        ((picture.path, picture.label, digest) for picture, digest in every), "bytes"
    )
    overlap = quality_warnings.train_test_overlap(sum(leaked), "bytes", "left out of training", affects_verdict=False)
    return train, test_part, twins, [overlap] if any(leaked) else []


def layout_warnings(layout: FolderLayout) -> list[RunWarning]:
    """Return warnings about files and folders that are left out, and about a class with few images."""
    said = []
    if layout.ignored:
        what = plural(len(layout.ignored), "file is no picture", "files are no pictures")
        said.append(f"{what} ({', '.join(SUFFIXES)}), left out: {_kinds(layout.ignored)}")
    if layout.strayed:
        count, (path, other) = len(layout.strayed), layout.strayed[0]
        leads = f"{plural(count, 'folder')} {agree(count, 'leads', 'lead')} to pictures of another class"
        said.append(f"{leads}, where alone they count (first: {path}, to class {other!r})")
    if layout.unused:
        said.append(f"sub-folders not used: {', '.join(layout.unused)}")
    counts = Counter(picture.label for picture in layout.train)
    label, fewest = min(counts.items(), key=lambda item: (item[1], item[0]))
    if fewest < 10:
        said.append(f"class {layout.classes[label]!r} has only {plural(fewest, 'image')}")
    return [RunWarning(text) for text in said]
