"""The layout of a photo folder: which folders are its parts, which are classes, and what is only wrapped around them.

Nothing here opens an image.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from compress.core.class_names import look_alikes, loosely, nfc
from compress.core.errors import UsageError
from compress.core.plural import agree, plural
from compress.data.sources.folder_files import direct_images, holds_images, subfolders

# Names of a test part, the preferred one first.
TEST_NAMES = ("test", "testing", "val", "valid", "validation")
PART_WORDS = {
    **{"train": "train", "training": "train", "test": "test", "testing": "test"},
    **{"val": "val", "valid": "val", "validation": "val"},
}
Folders = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Parts:
    """Where the classes of each part are: class name -> folders below the root.

    Attributes:
        train: Classes of the training part, or of a folder without parts, sorted.
        test: The same classes of the test part; None: there is none.
        train_place: The folder of the classes, relative to the root, `""` for the root.
        unused: Names of sub-folders that were left out, such as val beside test.
        notes: Sentences on how the layout was read.
    """

    train: Folders
    test: Folders | None
    train_place: str
    unused: tuple[str, ...]
    notes: tuple[str, ...]


def part_kind(name: str, *, words_only: bool = True) -> str | None:
    """Return `train`, `test` or `val` for the name of such a part, in any case; None for another name.

    Args:
        name: A folder's name, such as `Training` or `seg_test`.
        words_only: Whether the part must be a word of the name; else it may be the beginning or end of one.
    """
    words = [word for word in re.split(r"[\W\d_]+", nfc(name).casefold()) if word]
    kinds = {PART_WORDS[word] for word in words if word in PART_WORDS}
    if not kinds and not words_only:
        kinds = {kind for part, kind in PART_WORDS.items() for word in words if word.startswith(part)} or {
            kind for part, kind in PART_WORDS.items() for word in words if word.endswith(part)
        }
    return kinds.pop() if len(kinds) == 1 else None


def class_folders(root: Path, place: str) -> dict[str, tuple[str, ...]]:
    """Return the class folders in root/place, sorted by class: names that differ only in Unicode form are one class."""
    found: dict[str, list[str]] = {}
    for name in subfolders(root / place):
        found.setdefault(nfc(name), []).append(f"{place}{name}")
    return {name: tuple(found[name]) for name in sorted(found)}


def find_parts(root: Path) -> Parts:
    """Find the parts and classes below a root.

    Raises:
        UsageError: There are fewer than two classes, a test part without a training part, two training parts, or
            the folders look like parts of another kind.
    """
    place = _enter(root, "", keep_parts=True)
    names = subfolders(root / place)
    kinds = {name: part_kind(name) for name in names}
    train = _training_part(root, place, kinds)
    if train is None and (loose := _loose_kinds(root, place, names)):
        kinds, train = loose, _training_part(root, place, loose)
    notes = _entered(place, "")
    if train is None:
        _refuse_part_names(root, place, kinds)
        classes = class_folders(root, place)
        _require_classes(root, place, classes)
        return Parts(classes, None, place, (), (*notes, *_notes(root, place, classes)))
    inside = _enter(root, f"{place}{train}/")
    classes = class_folders(root, inside)
    _require_classes(root, inside, classes)
    notes += [*_entered(inside, f"{place}{train}/"), *_notes(root, inside, classes)]
    test, used, found = _test_part(root, place, kinds, inside, classes)
    unused = tuple(name for name in names if name not in (train, used))
    return Parts(classes, test, inside, unused, (*notes, *found))


def _enter(root: Path, place: str, *, keep_parts: bool = False) -> str:
    """Return the folder, or the one inside it that everything is in: archives often hold one folder around all.

    Args:
        root: Folder that places are relative to.
        place: The folder.
        keep_parts: Whether a single part, such as train without a test part, is left to be found as one.
    """
    seen = set()
    while (real := os.path.realpath(root / place)) not in seen:  # a link may lead back
        seen.add(real)
        names = subfolders(root / place)
        if len(names) != 1 or holds_images(root / place):
            break
        inner = subfolders(root / place / names[0])
        if not inner:  # a single class
            break
        if keep_parts and part_kind(names[0]) and "train" not in map(part_kind, inner):
            break
        place += f"{names[0]}/"
    return place


def _entered(place: str, outer: str) -> list[str]:
    """Return the sentence that says that a folder was entered, if one was."""
    return [f"{place.rstrip('/')}: the only folder in its place, so it was entered"] if place != outer else []


def _training_part(root: Path, place: str, kinds: Mapping[str, str | None]) -> str | None:
    """Return the name of the training part: the one that has class folders. Raises UsageError if there are two."""
    found = [
        name for name, kind in kinds.items() if kind == "train" and subfolders(root / _enter(root, f"{place}{name}/"))
    ]
    exact = [name for name in found if PART_WORDS.get(name.casefold())]
    if len(exact or found) > 1:
        raise UsageError(
            f"{root / place}: {' and '.join(exact or found)} are both training parts; leave one there, or put "
            "data.root on a folder with one"
        )
    return next(iter(exact or found), None)


def _loose_kinds(root: Path, place: str, names: list[str]) -> dict[str, str | None]:
    """Return the kinds of names such as trainset and testset, where both are there and share two class folders."""
    kinds = {name: part_kind(name, words_only=False) for name in names}
    inside = {
        name: {loosely(one) for one in subfolders(root / _enter(root, f"{place}{name}/"))}
        for name, kind in kinds.items()
        if kind
    }
    trains = [name for name in inside if kinds[name] == "train"]
    others = [name for name in inside if kinds[name] != "train"]
    return kinds if any(len(inside[one] & inside[other]) > 1 for one in trains for other in others) else {}


def _refuse_part_names(root: Path, place: str, kinds: Mapping[str, str | None]) -> None:
    """Raise UsageError where a folder without a training part has folders named like parts: they would be classes."""
    named = [name for name, kind in kinds.items() if kind]
    if any(re.search(r"\binvalid\b", name.casefold()) for name in kinds):  # then `valid` is a class
        named = [name for name in named if kinds[name] != "val"]
    tested = [name for name in named if kinds[name] != "train"]
    here = root / place
    if named and len(named) == len(kinds):
        if len(tested) == len(named):
            raise UsageError(
                f"{here}: there is {' and '.join(named)} but no train sub-folder; put the training images into "
                f"{here / 'train'}"
            )
        raise UsageError(
            f"{here}: {' and '.join(named)} hold no class sub-folders, so the classes of their images are unknown; "
            "make one sub-folder of photos for each class in each of them"
        )
    if tested:  # taken as a class it would leak the test part into training
        raise UsageError(
            f"{here}: {tested[0]!r} is beside class sub-folders and would be taken for a class; put the training "
            f"classes into {here / 'train'}, so that {here / tested[0]} is the test part"
        )


def _require_classes(root: Path, place: str, classes: Folders) -> None:
    """Raise UsageError unless there are two classes, and these are no parts or domains of other classes."""
    if len(classes) < 2:
        loose = direct_images(root / place)
        beside = f" ({plural(len(loose), 'image')} in no class sub-folder)" if loose else ""
        raise UsageError(
            f"{root / place}: {plural(len(classes), 'class sub-folder')}, but a classifier needs at least two; make "
            f"one sub-folder of photos for each class{beside}{_list_there(root / place)}"
        )
    inner = []
    for folders in classes.values():
        top = _enter(root, f"{folders[0]}/")
        if holds_images(root / folders[0]) or holds_images(root / top):
            return
        inner.append({loosely(name) for name in subfolders(root / top)})
    shared, every = set.intersection(*inner), set.union(*inner)
    if len(shared) < 2 or 2 * len(shared) < len(every):
        return
    names, below = _first(classes), _first(sorted(shared))
    if {part_kind(name) for name in shared} - {None}:
        advice = "put the parts above the classes: train/CLASS and test/CLASS"
    else:
        advice = "name the parts train and test, or put data.root on one of them"
    raise UsageError(
        f"{root / place}: {names} hold nothing but sub-folders of the same names ({below}), so they look like parts of "
        f"the set rather than classes; {advice}"
    )


def _list_there(folder: Path) -> str:
    """Say how a CSV file that lies in a folder is used, if there is one."""
    name = next((path.name for path in sorted(folder.glob("*.csv")) if not path.name.startswith(".")), None)
    return f", or name a list of images with their labels: --set data.labels={name}" if name else ""


def _first(names: Iterable[str], count: int = 4) -> str:
    """Return the first names, and how many there are more."""
    names = list(names)
    return ", ".join(names[:count]) + (f" and {len(names) - count:,} more" if len(names) > count else "")


def _notes(root: Path, place: str, classes: Folders) -> list[str]:
    """Return sentences on images beside the class folders, and on classes with nearly the same name."""
    loose = direct_images(root / place)
    notes = []
    if loose:
        first = f"{place}{loose[0]}"
        lie = agree(len(loose), "lies", "lie")
        notes.append(f"{plural(len(loose), 'image')} {lie} beside the class folders, not used (first: {first})")
    at = sorted(entry.name for entry in os.scandir(root / place) if entry.is_dir() and entry.name[0] == "@")
    if at:
        notes.append(f"folders whose names begin with @ are left out, a NAS writes them: {_first(at)}")
    notes += [
        f"the folders {' and '.join(map(repr, folders))} are one class: they differ only in their Unicode form"
        for folders in classes.values()
        if len(folders) > 1
    ]
    return notes + [
        f"the classes {' and '.join(map(repr, group))} differ only in case or space; if they are one class, put their "
        "images into one folder"
        for group in look_alikes(classes)
    ]


def _test_part(
    root: Path, place: str, kinds: Mapping[str, str | None], train: str, classes: Folders
) -> tuple[Folders | None, str | None, list[str]]:
    """Return the classes of the test part, the name of its folder, and sentences on parts without labels."""
    notes = []
    for name in sorted((one for one in kinds if kinds[one] in ("test", "val")), key=_preference):
        inside = _enter(root, f"{place}{name}/")
        found = class_folders(root, inside)
        if len(found) < 2 and not set(map(loosely, found)) & set(map(loosely, classes)):
            if holds_images(root / inside) or found:
                notes.append(f"{place}{name}: its images are in no class sub-folders, so it is not used")
            continue
        matched, said = match_classes(root, inside, found, train, classes)
        return matched, name, [*notes, *_entered(inside, f"{place}{name}/"), *said]
    return None, None, notes


def _preference(name: str) -> tuple[bool, int, str]:
    """Order test parts: test before validation, plain names first."""
    plain = name.casefold()
    exact = TEST_NAMES.index(plain) if plain in TEST_NAMES else len(TEST_NAMES)
    return part_kind(name, words_only=False) != "test", exact, name


def match_classes(
    root: Path, place: str, found: Folders, train: str, classes: Folders
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Return the folders of root/place by the classes of root/train, and sentences on names that differ.

    A name that differs only in case or surrounding space stands for the class, where just one does.

    Raises:
        UsageError: The classes differ.
    """
    close = {loosely(name): name for name in classes}
    matched: dict[str, tuple[str, ...]] = {}
    extra, notes = [], []
    for name, folders in found.items():
        meant = name if name in classes else close.get(loosely(name))
        if meant is None or (meant != name and meant in found) or meant in matched:
            extra.append(name)
            continue
        matched[meant] = folders
        if meant != name:
            notes.append(f"{folders[0]}: taken for class {meant!r}, which differs only in case or space")
    absent = [name for name in classes if name not in matched]
    if absent:
        raise UsageError(
            f"{(root / place)}: no sub-folder for class {absent[0]!r} of {root / train}; add test images of it, or "
            "remove the class"
        )
    if extra:
        raise UsageError(
            f"{root / place}: class {extra[0]!r} is not in {root / train}; add training images of it, or remove it "
            f"from {Path(place).name}"
        )
    return {name: matched[name] for name in classes}, notes
