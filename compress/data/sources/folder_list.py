"""Photos listed in a CSV file (`data.labels`): one row an image, with its class."""

from __future__ import annotations

import csv
import io
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from compress.core.class_names import look_alikes, nfc
from compress.core.errors import MissingError, UsageError
from compress.core.plural import agree, plural
from compress.data.sources.folder_files import ImageFile
from compress.data.sources.folder_parts import part_kind

# Names that the columns may have, in any case; the first is the usual one.
FILE = ("file", "path", "image", "filename", "file_name", "filepath", "image_path")
LABEL = ("label", "class", "category", "target", "class_name")
PART = ("part", "split", "set", "subset")
DELIMITERS = ",;\t"
MOST_ABSENT = 0.5  # share of listed files that may be absent: with more, the paths count from elsewhere


@dataclass(frozen=True)
class ListedImages:
    """What a list holds.

    Attributes:
        classes: Class names, sorted.
        train: Images of the training part, or all.
        test: Images of the test part; None: it must be carved off `train`.
        columns: For each column, the value of every image by its path.
        notes: Sentences on what is not used.
    """

    classes: tuple[str, ...]
    train: tuple[ImageFile, ...]
    test: tuple[ImageFile, ...] | None
    columns: Mapping[str, Mapping[str, str]]
    notes: tuple[str, ...]


def locate(root: Path, labels: str) -> Path:
    """Return the path of the list: `data.labels` relative to `data.root`. Raises MissingError if it is not there."""
    path = root / Path(labels).expanduser()
    if not path.is_file():
        raise MissingError(
            f"data.labels: {path} is not a file; name the CSV file, relative to data.root, with: "
            "--set data.labels=FILE.csv"
        )
    return path


def read(root: Path, labels: str) -> ListedImages:
    """Read a list; its file names are relative to it, or to the root.

    Raises:
        MissingError: The list, or most of its files, are absent.
        UsageError: It is no CSV file with the columns, rows have no label, or a file has two labels.
    """
    path = locate(root, labels)
    header, rows = _rows(path)
    file, label = (_column(path, header, names, what) for names, what in ((FILE, "file"), (LABEL, "label")))
    part = next((name for name in header if name.strip().casefold() in PART), None)
    unlabelled = [number for number, row in rows if not row[label].strip()]
    if unlabelled:
        raise UsageError(
            f"{path}: {plural(len(unlabelled), 'row has', 'rows have')} no label (first: line {unlabelled[0]}); images "
            f"without a label stand in a folder of their own (data.unlabelled): fill in the column {label!r}, or "
            "remove the rows"
        )
    found = {row[file].strip(): number for number, row in rows}
    places = {name: _place(root, path, name) for name in found}
    _require_files(path, root, places, found)
    label_of: dict[str, str] = {}
    for number, row in rows:
        place, name = places[row[file].strip()], nfc(row[label].strip())
        if label_of.setdefault(place, name) != name:
            raise UsageError(
                f"{path}: line {number}: {row[file].strip()} has label {name!r} here and {label_of[place]!r} above; an "
                "image has one class"
            )
    classes = tuple(sorted(set(label_of.values())))
    if len(classes) < 2:
        raise UsageError(f"{path}: all rows have label {classes[0]!r}, but a classifier needs two classes")
    images = tuple(ImageFile(place, classes.index(name)) for place, name in sorted(label_of.items()))
    images = tuple(sorted(images, key=lambda image: (image.label, image.path)))
    columns = {
        name: {places[row[file].strip()]: row[name].strip() for _, row in rows} for name in header if name != file
    }
    notes = [
        f"the classes {' and '.join(map(repr, group))} differ only in case or space" for group in look_alikes(classes)
    ]
    if len(label_of) < len(rows):
        twice = len(rows) - len(label_of)
        notes.append(f"{plural(twice, 'row')} {agree(twice, 'names', 'name')} a file again, counted once")
    train, test, unused = _parts(path, images, columns[part] if part is not None else None, classes)
    return ListedImages(classes, train, test, columns, (*notes, *unused))


def _rows(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Return the header, and line number and values of every row that is not empty."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    first = text.partition("\n")[0]
    delimiter = max(DELIMITERS, key=first.count)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, restval="")
        rows = [
            (reader.line_num, {name: value for name, value in row.items() if isinstance(name, str)}) for row in reader
        ]
    except csv.Error as error:
        raise UsageError(f"{path}: is no CSV file ({error})") from error
    kept = [(number, row) for number, row in rows if any(value.strip() for value in row.values())]
    header = list(reader.fieldnames or ())
    if not kept:
        raise UsageError(f"{path}: holds no rows; write a header such as file,label and one row for each image")
    if len(set(header)) < len(header):
        raise UsageError(f"{path}: a column name stands twice in its header: {', '.join(header)}")
    return header, kept


def _column(path: Path, header: list[str], names: tuple[str, ...], what: str) -> str:
    """Return the header's own name of a column. Raises UsageError unless there is just one."""
    found = [name for wanted in names for name in header if name.strip().casefold() == wanted]
    if not found:
        raise UsageError(
            f"{path}: its header {', '.join(header)!r} has no column {what!r} (also accepted: {', '.join(names[1:])})"
        )
    return found[0]


def _place(root: Path, path: Path, name: str) -> str:
    """Return a listed file's path relative to the root, with `/`."""
    plain = Path(name.replace("\\", "/")).expanduser()
    full = path.parent / plain
    if not full.is_file() and (root / plain).is_file():
        full = root / plain
    return Path(os.path.relpath(full, root)).as_posix()


def _require_files(path: Path, root: Path, places: Mapping[str, str], lines: Mapping[str, int]) -> None:
    """Raise an error for an empty file name, and where most listed files are absent; decoding reports a few."""
    if "" in places:
        raise UsageError(f"{path}: line {lines['']}: names no file")
    absent = [name for name, place in places.items() if not (root / place).is_file()]
    if len(absent) > MOST_ABSENT * len(places):
        raise MissingError(
            f"{path}: {len(absent):,} of {len(places):,} listed files do not exist (first: {absent[0]}); file names "
            f"are relative to the list, or to data.root; see what is there with: ls {path.parent}"
        )


def _parts(
    path: Path, images: tuple[ImageFile, ...], part_of: Mapping[str, str] | None, classes: tuple[str, ...]
) -> tuple[tuple[ImageFile, ...], tuple[ImageFile, ...] | None, list[str]]:
    """Return the images of the training and the test part, and sentences on parts that are not used."""
    if part_of is None or not any(part_of.values()):
        return images, None, []
    named: dict[str, list[ImageFile]] = defaultdict(list)
    for image in images:
        kind = part_kind(part_of[image.path])
        if kind is None:
            raise UsageError(
                f"{path}: {image.path} is in part {part_of[image.path]!r}; a part is train, test or val, or the column "
                "is left out"
            )
        named[kind].append(image)
    test = next((kind for kind in ("test", "val") if kind in named), None)
    held = {image.label for image in named["train"]}
    lost = [name for label, name in enumerate(classes) if label not in held]
    if lost:
        raise UsageError(f"{path}: class {lost[0]!r} has no rows in part train; add some, or remove the class")
    unused = [f"part val of the list is not used: {len(named['val']):,} images"] if len(named) > 2 else []
    return tuple(named["train"]), None if test is None else tuple(named[test]), unused
