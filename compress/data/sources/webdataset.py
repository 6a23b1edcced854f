"""Shards in the webdataset convention.

A shard is a tar file with NAME.jpg beside NAME.cls (a number) or NAME.json ({"label": number}).
root/*train*-000000.tar ... is the training part, root/*val*-... (or test) the test part; root/classes.txt, one name a
line, names the classes. Each is scanned once for the positions of its images; training then reads any image of any
shard directly.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compress.core.class_names import nfc
from compress.core.errors import MissingError, UsageError
from compress.data.sources.folder_files import FORMATS
from compress.data.sources.folder_parts import TEST_NAMES
from compress.data.streaming.listing import ListedPart
from export.runtime import images as image_files

JSON_LABEL_KEYS = ("label", "cls", "class")


@dataclass(frozen=True)
class ShardPaths:
    """The shards of a root, by part."""

    train: tuple[Path, ...]
    test: tuple[Path, ...]


@dataclass
class _Sample:
    """What was read of one NAME; `image` is its offset, its bytes, and its name with the header's time and checksum."""

    name: str
    label: int | None = None
    by_cls: bool = False
    image: tuple[int, int, str] | None = None


def find_shards(root: Path) -> ShardPaths:
    """Find the shards without opening one.

    Raises:
        MissingError: A part has no shards, or there is a gap in their numbers.
        UsageError: Shards are compressed.
    """
    if not root.is_dir():
        raise MissingError(
            f"data.root: {root} is not a folder; name the one with the shards: "
            "compress run RECIPE --set data.root=FOLDER"
        )
    packed = sorted(
        path.name for path in root.iterdir() if path.name.endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.xz"))
    )
    if packed:
        raise UsageError(
            f"{root / packed[0]}: a compressed shard cannot be read in random order; unpack it to a plain .tar "
            "(its images are compressed already)"
        )
    found = sorted(root.glob("*.tar"))
    parts = {part: tuple(path for path in found if part in _words(path)) for part in ("train", *TEST_NAMES)}
    test = next((parts[part] for part in TEST_NAMES if parts[part]), ())
    for name, what, part in (("train", "training", parts["train"]), ("val", "test", test)):
        if not part:
            raise MissingError(
                f"{root} holds no shard of the {what} part ({name}-000000.tar ...); see what it holds with: ls {root}"
            )
    _require_all(parts["train"])
    _require_all(test)
    return ShardPaths(parts["train"], test)


def _words(path: Path) -> set[str]:
    return set(re.split(r"[^a-z]+", path.stem.lower()))


def _require_all(part: tuple[Path, ...]) -> None:
    """Raise MissingError if numbered shards skip a number: an interrupted download would silently train on less."""
    numbered = {int(match[1]): path for path in part if (match := re.search(r"(\d+)$", path.stem))}
    gap = next(
        (number for number in range(max(numbered, default=0)) if number not in numbered and number > min(numbered)),
        None,
    )
    if gap is not None:
        before = numbered[gap - 1]
        missing = re.sub(r"\d+$", lambda match: f"{gap:0{len(match[0])}d}", before.stem)
        raise MissingError(
            f"{before.with_name(f'{missing}.tar')} is missing between its neighbours; fetch it, then list them all: "
            f"ls {before.parent}"
        )


def content_stamp(root: Path) -> list[tuple[str, int, int]]:
    """Return name, bytes and modification time (ns) of every shard, without opening one."""
    found = find_shards(root)
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in (*found.train, *found.test)]


def scan(paths: tuple[Path, ...], report: Callable[[str], None]) -> ListedPart:
    """List the images in the shards of one part by the tar headers.

    Raises:
        UsageError: A sample lacks its label or its image.
        MissingError: A shard is broken.
    """
    file: list[int] = []
    samples: list[_Sample] = []
    for number, path in enumerate(paths):
        found = list(_samples(path))
        file += [number] * len(found)
        samples += found
        if len(paths) > 1 and (number + 1) % 50 == 0:
            report(f"data: listed {number + 1} of {len(paths)} shards, {len(samples):,} images")
    images = [sample.image for sample in samples if sample.image is not None]
    offset, size = (np.array([image[which] for image in images], dtype=np.int64) for which in (0, 1))
    labels = np.array([sample.label for sample in samples], dtype=np.int64)
    return ListedPart(
        tuple(path.name for path in paths),
        np.array(file, np.int64),
        offset,
        size,
        tuple(image[2] for image in images),
        labels,
    )


def _samples(path: Path) -> Iterator[_Sample]:
    """Yield the complete samples of a shard; the members of one NAME are adjacent."""
    sample: _Sample | None = None
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                if not member.isfile():
                    continue
                folder, _, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                name = f"{folder}/{stem}" if folder else stem
                if sample is None or sample.name != name:
                    yield from _complete(path, sample)
                    sample = _Sample(name)
                _add_member(path, shard, member, sample, f".{suffix.lower()}")
            end = shard.offset
        # tarfile takes the end of a file that was cut between two members for the end of the archive.
        with path.open("rb") as stream:
            stream.seek(end)
            if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise EOFError("its end mark is missing, so it was cut short")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise MissingError(
            f"{path} cannot be read as a tar file ({error}); fetch it again, and check it with: tar -tf {path}"
        ) from error
    yield from _complete(path, sample)


def _add_member(path: Path, shard: tarfile.TarFile, member: tarfile.TarInfo, sample: _Sample, suffix: str) -> None:
    """Add a member to its sample. Raises UsageError for a label that is not a number."""
    if suffix in (*image_files.SUFFIXES, *image_files.HEIF_SUFFIXES):
        sample.image = (member.offset_data, member.size, f"{member.name} {member.mtime} {member.chksum}")
    elif suffix == ".cls" or (suffix == ".json" and not sample.by_cls):
        stream = shard.extractfile(member)
        text = stream.read() if stream is not None else b""
        label = _class_number(text, suffix)
        if label is None and suffix == ".json":
            return  # a .json may hold other things than the label
        if label is None:
            raise UsageError(f"{path}: {member.name}: {text[:40]!r} is not a class number, 0 or more")
        sample.label, sample.by_cls = label, suffix == ".cls"


def _class_number(text: bytes, suffix: str) -> int | None:
    """Return the class number in a label file, or None."""
    try:
        value = json.loads(text) if suffix == ".json" else int(text)
    except ValueError:  # includes UnicodeDecodeError
        return None
    if suffix == ".json":
        value = next((value[key] for key in JSON_LABEL_KEYS if key in value), None) if isinstance(value, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _complete(path: Path, sample: _Sample | None) -> Iterator[_Sample]:
    """Yield the sample if it has an image and a label; skip it if it has neither.

    Raises UsageError if only one of the two is there.
    """
    if sample is None or (sample.image is None and sample.label is None):
        return
    if sample.image is None or sample.label is None:
        lacks = (
            f"no image ({FORMATS})" if sample.image is None else "no label (.cls, or .json with a number under 'label')"
        )
        raise UsageError(f"{path}: {sample.name} has {lacks} beside it; write the shard again with both under one name")
    yield sample


def classes_file(root: Path) -> str | None:
    """Return the text of root/classes.txt; None if there is no such file. Raises UsageError if it is not text."""
    path = root / "classes.txt"
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}); write one name a line"
        ) from error


def listed_names(root: Path) -> tuple[str, ...]:
    """Return the names in root/classes.txt, empty if there is no such file. Raises UsageError if it is not text."""
    return tuple(nfc(line.strip()) for line in (classes_file(root) or "").splitlines() if line.strip())


def class_names(root: Path, train: ListedPart, test: ListedPart) -> tuple[str, ...]:
    """Return the names in classes.txt, else the class numbers as names.

    Raises:
        UsageError: A class number has no name or no training image.
    """
    count = int(max(train.labels.max(initial=-1), test.labels.max(initial=-1))) + 1
    names = listed_names(root)
    if names and len(names) < count:
        raise UsageError(
            f"{root / 'classes.txt'}: {len(names)} names, but the shards have classes up to number {count - 1}; "
            "write one line for each class, starting with class 0"
        )
    names = names or tuple(str(number) for number in range(count))
    absent = sorted(set(range(len(names))) - set(train.labels.tolist()))
    if absent or len(names) < 2:
        what = f"class {absent[0]} ({names[absent[0]]}) has no image" if absent else "there are fewer than two classes"
        raise UsageError(f"{root}: {what} in the training shards; a classifier needs images of each class")
    return names
