"""Groups of images that belong together, such as the frames of a clip or the images of a patient (`data.group`).

Images of one group stay on one side of every split: a network would recognise a frame of a clip that it was trained on.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from compress.core.errors import UsageError
from compress.core.plural import agree, plural
from compress.core.records.warnings import RunWarning
from compress.recipe.group_setting import COLUMN, GAP, PARENT

# Patterns that `suggest` tries: a path's class folder and name without the counter at its end.
COUNTERS = (
    r"([^/]+/[^/]+)_\d+",
    r"([^/]+/[^/]+)-\d+",
    r"([^/]+/[^/]+) \(?\d+",
    r"([^/]+/[^/]+)\.\d+\.",
    r"([^/]+/[^/]*\d+[^/\d]+)\d+",
)


@dataclass(frozen=True)
class Grouping:
    """The group of each image, in order, and what the user should know about them."""

    names: tuple[str, ...]
    warnings: tuple[RunWarning, ...] = ()


def group_images(
    setting: str, root: Path, paths: Sequence[str], columns: Mapping[str, Sequence[str]] | None = None
) -> Grouping:
    """Return the group of each image.

    Args:
        setting: `data.group`: parent, column:NAME, time_gap:SECONDS, or a regular expression.
        root: Folder that the paths are relative to.
        paths: Of the images, with `/`.
        columns: Columns of `data.labels`, one value an image; None: there is no such list.

    Raises:
        UsageError: There is no such column, or no image has what the setting asks for.
    """
    if setting == PARENT:
        return Grouping(tuple(Path(path).parent.name for path in paths))
    if setting.startswith(COLUMN):
        return _by_column(setting.removeprefix(COLUMN), paths, columns)
    if setting.startswith(GAP):
        return _by_time(float(setting.removeprefix(GAP)), root, paths)
    return _by_pattern(re.compile(setting), paths)


def _by_column(column: str, paths: Sequence[str], columns: Mapping[str, Sequence[str]] | None) -> Grouping:
    if columns is None:
        raise UsageError(
            f"data.group: column:{column} needs a list with that column; name one by data.labels, or group by a "
            "regular expression on the path"
        )
    if column not in columns:
        raise UsageError(f"data.group: data.labels has no column {column!r}; there are {', '.join(columns)}")
    values = columns[column]
    missing = [path for path, value in zip(paths, values, strict=True) if not value]
    return Grouping(
        tuple(value or _alone(path) for path, value in zip(paths, values, strict=True)),
        _warn_of_alone(missing, len(paths), f"no value in column {column!r}"),
    )


def _by_pattern(pattern: re.Pattern[str], paths: Sequence[str]) -> Grouping:
    matches = [pattern.search(path) for path in paths]
    # Of an optional group that took no part the whole match counts.
    names = [
        None if match is None else (match.group(1) if pattern.groups and match.group(1) is not None else match.group())
        for match in matches
    ]
    if paths and not any(names):
        raise UsageError(
            f"data.group: {pattern.pattern} matches no path below data.root (first: {paths[0]}); the path is relative "
            "to data.root, with /"
        )
    missing = [path for path, name in zip(paths, names, strict=True) if not name]
    return Grouping(
        tuple(name or _alone(path) for path, name in zip(paths, names, strict=True)),
        _warn_of_alone(missing, len(paths), f"{pattern.pattern} does not match"),
    )


def _by_time(gap: float, root: Path, paths: Sequence[str]) -> Grouping:
    """Cut each folder's images, in the order of their times, where more than `gap` seconds pass."""
    taken = [_taken(root / path) for path in paths]
    if paths and not any(taken):
        raise UsageError(
            f"data.group: no image below {root} has the EXIF time at which it was taken (first: {paths[0]}); group by "
            "parent or by a regular expression on the path"
        )
    names = {path: _alone(path) for path in paths}
    last, start = datetime.min, ""
    for time, path in sorted((time, path) for time, path in zip(taken, paths, strict=True) if time is not None):
        if not start or (time - last).total_seconds() > gap:
            start = f"{time.isoformat()} {path}"
        names[path], last = start, time
    missing = [path for path, time in zip(paths, taken, strict=True) if time is None]
    return Grouping(
        tuple(names[path] for path in paths), _warn_of_alone(missing, len(paths), "no EXIF time at which it was taken")
    )


def _taken(path: Path) -> datetime | None:
    """Return when a photo was taken, from DateTimeOriginal or DateTime of its EXIF data."""
    from compress.data.decode import DECODE_ERRORS  # needs Pillow, which training on arrays does without
    from export.runtime.images import open_image

    try:
        with open_image(path) as image:
            exif = image.getexif()
            text = exif.get_ifd(0x8769).get(0x9003) or exif.get(0x0132)
        return datetime.strptime(str(text).strip("\0 "), "%Y:%m:%d %H:%M:%S") if text else None
    except DECODE_ERRORS:
        return None


def _alone(path: str) -> str:
    return f"alone: {path}"


def _warn_of_alone(missing: Sequence[str], total: int, why: str) -> tuple[RunWarning, ...]:
    if not missing:
        return ()
    count = len(missing)
    return (
        RunWarning(
            f"data.group: {count:,} of {plural(total, 'image')} {agree(count, 'is', 'are')} a group of "
            f"{agree(count, 'its', 'their')} own: {why} (first: {missing[0]})",
            affects_verdict=True,
        ),
    )


def straddling(train: Sequence[str], test: Sequence[str]) -> tuple[RunWarning, ...]:
    """Return a warning where groups lie in both of two parts that the data itself names."""
    both = sorted(set(train) & set(test))
    if not both:
        return ()
    images = sum(name in set(both) for name in test)
    return (
        RunWarning(
            f"data.group: {plural(len(both), 'group')} {agree(len(both), 'is', 'are')} in the training and the test "
            f"part (first: {both[0]}), with {plural(images, 'test image')}; accuracy may be too high: move each group "
            "to one part",
            affects_verdict=True,
        ),
    )


def suggest(pairs: Sequence[tuple[str, str]], paths: Sequence[str], classes: Sequence[str] = ()) -> str | None:
    """Return a `data.group` that keeps near-duplicates together, by a pattern in the files' names.

    It must join nine of ten pairs and leave at least four groups, none with more than a quarter of the images, and no
    more groups than half of the images. It must also be finer than the folders, which are the classes or inside them:
    a group of a whole class cannot be split.

    Args:
        pairs: Paths of near-duplicates.
        paths: Of all images.
        classes: Names of the classes, whose folders are no groups.

    Returns:
        `parent`, a regular expression, or None.
    """
    for setting in (*COUNTERS, PARENT):
        names = [_name(setting, path) for path in paths]
        sizes = Counter(names)
        if setting == PARENT and sizes.keys() <= set(classes):
            continue
        folders = {Path(path).parent.parent if setting == PARENT else Path(path).parent for path in paths}
        joined = sum(_name(setting, one) == _name(setting, other) for one, other in pairs)
        if (
            None not in sizes
            and joined >= 0.9 * len(pairs)
            and len(sizes) >= max(4, 2 * len(folders))
            and max(sizes.values()) <= len(paths) / 4
            and len(sizes) <= len(paths) / 2
        ):
            return setting
    return None


def _name(setting: str, path: str) -> str | None:
    if setting == PARENT:
        return Path(path).parent.name
    match = re.search(setting, path)
    return match.group(1) if match else None
