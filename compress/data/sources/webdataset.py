"""ShardPaths in the webdataset convention: tar files in which NAME.jpg stands beside NAME.cls (a number) or NAME.json ({"label": number}).

root/*train*-000000.tar ... are trained on, root/*val*-... (or test) are the test part; root/classes.txt, one a line, names the classes.
A shard is read once for the places of its pictures; training then reads any picture of any shard directly.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compress.core.errors import MissingError, UsageError
from compress.data.sources.folder import SUFFIXES, TEST_NAMES
from compress.data.streaming.listing import ListedPart

LABEL_KEYS = ("label", "cls", "class")  # of a .json


@dataclass(frozen=True)
class ShardPaths:
    """The shards of a root, by part."""

    train: tuple[Path, ...]
    test: tuple[Path, ...]


@dataclass
class _Sample:
    """What was read of one NAME."""

    name: str
    label: int | None = None
    by_cls: bool = False
    picture: tuple[int, int, str] | None = None  # offset, bytes, name with the header's time and check sum


def find_shards(root: Path) -> ShardPaths:
    """Find the shards without opening one. Raises MissingError for none of a part and for a gap in their numbers, UsageError for compressed ones."""
    if not root.is_dir():
        raise MissingError(
            f"data.root: {root} is not a folder; name the one with the shards: compress run RECIPE --set data.root=FOLDER"
        )
    packed = sorted(
        path.name for path in root.iterdir() if path.name.endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.xz"))
    )
    if packed:
        raise UsageError(
            f"{root / packed[0]}: a compressed shard cannot be read in any order; unpack it to a plain .tar (its pictures are compressed already)"
        )
    found = sorted(root.glob("*.tar"))
    parts = {part: tuple(path for path in found if _is(path, (part,))) for part in ("train", *TEST_NAMES)}
    test = next((parts[part] for part in TEST_NAMES if parts[part]), ())
    for name, part in (("train", parts["train"]), ("val", test)):
        if not part:
            raise MissingError(
                f"{root} holds no shard of the {'training' if name == 'train' else 'test'} part ({name}-000000.tar ...); see what it holds with: ls {root}"
            )
    _require_all(parts["train"])
    _require_all(test)
    return ShardPaths(parts["train"], test)


def _is(path: Path, words: tuple[str, ...]) -> bool:
    return bool(set(re.split(r"[^a-z]+", path.stem.lower())) & set(words))


def _require_all(part: tuple[Path, ...]) -> None:
    """Raise MissingError where numbered shards leave a number out: an interrupted download would quietly train on less."""
    numbered = {int(match[1]): path for path in part if (match := re.search(r"(\d+)$", path.stem))}
    gap = next(
        (number for number in range(max(numbered, default=0)) if number not in numbered and number > min(numbered)),
        None,
    )
    if gap is not None:
        before = numbered[gap - 1]
        missing = re.sub(r"\d+$", lambda match: f"{gap:0{len(match[0])}d}", before.stem)
        raise MissingError(
            f"{before.with_name(f'{missing}.tar')} is missing between its neighbours; bring it, then see them all: ls {before.parent}"
        )


def content_stamp(root: Path) -> list[tuple[str, int, int]]:
    """(name, bytes, modification time in ns) of every shard: cheap, opens none."""
    found = find_shards(root)
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in (*found.train, *found.test)]


def scan(paths: tuple[Path, ...], report: Callable[[str], None]) -> ListedPart:
    """List the shards of one part by their headers. Raises UsageError for a sample without its label or picture, MissingError for a broken shard."""
    file: list[int] = []
    samples: list[_Sample] = []
    for number, path in enumerate(paths):
        found = list(_samples(path))
        file += [number] * len(found)
        samples += found
        if len(paths) > 1 and (number + 1) % 50 == 0:
            report(f"data: listed {number + 1} of {len(paths)} shards, {len(samples):,} pictures")
    pictures = [sample.picture for sample in samples if sample.picture is not None]
    offset, size = (np.array([picture[which] for picture in pictures], dtype=np.int64) for which in (0, 1))
    labels = np.array([sample.label for sample in samples], dtype=np.int64)
    return ListedPart(
        tuple(path.name for path in paths),
        np.array(file, np.int64),
        offset,
        size,
        tuple(picture[2] for picture in pictures),
        labels,
    )


def _samples(path: Path) -> Iterator[_Sample]:
    """The whole samples of a shard: members of one NAME stand side by side."""
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
                    yield from _whole(path, sample)
                    sample = _Sample(name)
                _note(path, shard, member, sample, f".{suffix.lower()}")
            end = (
                shard.offset
            )  # of what was read: tarfile takes the end of a file that was cut between two members for the archive's
        with path.open("rb") as stream:
            stream.seek(end)
            if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise EOFError("it has no end mark, so it was cut short")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise MissingError(
            f"{path} cannot be read as a tar file ({error}); bring it again, and check it with: tar -tf {path}"
        ) from error
    yield from _whole(path, sample)


def _note(path: Path, shard: tarfile.TarFile, member: tarfile.TarInfo, sample: _Sample, suffix: str) -> None:
    """Add a member to its sample. Raises UsageError for a label that is no number."""
    if suffix in SUFFIXES:
        sample.picture = (member.offset_data, member.size, f"{member.name} {member.mtime} {member.chksum}")
    elif suffix == ".cls" or (suffix == ".json" and not sample.by_cls):
        stream = shard.extractfile(member)
        text = stream.read() if stream is not None else b""
        label = _number(text, suffix)
        if label is None and suffix == ".json":
            return  # it may say other things than the label
        if label is None:
            raise UsageError(f"{path}: {member.name}: {text[:40]!r} is no class number from 0 on")
        sample.label, sample.by_cls = label, suffix == ".cls"


def _number(text: bytes, suffix: str) -> int | None:
    """The class number that a label file holds, or None."""
    try:
        value = json.loads(text) if suffix == ".json" else int(text)
    except ValueError:  # also UnicodeDecodeError
        return None
    if suffix == ".json":
        value = next((value[key] for key in LABEL_KEYS if key in value), None) if isinstance(value, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _whole(path: Path, sample: _Sample | None) -> Iterator[_Sample]:
    """The sample, where it has both halves; one with neither is no sample of pictures. Raises UsageError for half of one."""
    if sample is None or (sample.picture is None and sample.label is None):
        return
    if sample.picture is None or sample.label is None:
        lacks = (
            f"no picture ({', '.join(SUFFIXES)})"
            if sample.picture is None
            else "no label (.cls, or .json with a number under 'label')"
        )
        raise UsageError(f"{path}: {sample.name} has {lacks} beside it; write the shard again with both under one name")
    yield sample


def classes_file(root: Path) -> str | None:
    """What root/classes.txt holds; None where there is no such file. Raises UsageError where it is no text."""
    path = root / "classes.txt"
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: is no UTF-8 text ({error.reason} at byte {error.start}); write one name a line"
        ) from error


def named(root: Path) -> tuple[str, ...]:
    """The names in root/classes.txt; none where there is no such file. Raises UsageError where it is no text."""
    return tuple(line.strip() for line in (classes_file(root) or "").splitlines() if line.strip())


def class_names(root: Path, train: ListedPart, test: ListedPart) -> tuple[str, ...]:
    """classes.txt, else the numbers as names. Raises UsageError where a number has no name or no training picture."""
    count = int(max(train.labels.max(initial=-1), test.labels.max(initial=-1))) + 1
    names = named(root)
    if names and len(names) < count:
        path = root / "classes.txt"
        raise UsageError(
            f"{path}: {len(names)} names, but the shards have classes up to number {count - 1}; one line for each class, from 0 on"
        )
    names = names or tuple(str(number) for number in range(count))
    absent = sorted(set(range(len(names))) - set(train.labels.tolist()))
    if absent or len(names) < 2:
        what = (
            f"class {absent[0]} ({names[absent[0]]}) has no picture" if absent else "there are fewer than two classes"
        )
        raise UsageError(f"{root}: {what} in the training shards; a classifier needs pictures of each")
    return names
