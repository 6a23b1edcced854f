"""A set of pictures that stay in their files: which file, where in it, how many bytes. Decoded when they are asked for. Torch-free.

A listing is three files that the data stage writes: rows int64 (N, 4) of [file number, offset, bytes, hash of the name], the files' paths
relative to the root, one a line, and the labels. What a training's key sees of the pictures is the rows and the labels.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from compress.core.errors import StageError, UsageError
from compress.core.records.base import File
from compress.data import npy

CHUNK = 256  # pictures decoded before they are handed on
PROGRESS_SECONDS = 5.0

Report = Callable[[str], None]


def size_with_margin(image_size: int) -> int:
    """What a photo's short side is resized to before its centre of `image_size` pixels is cut out: 256 for 224."""
    return round(image_size * 256 / 224)


@dataclass(frozen=True)
class ListingSpec:
    """Where a listing stands. `rows`, `paths`: its files; `image_size`: side of the pictures that it answers with."""

    root: Path
    rows: Path
    paths: Path
    image_size: int


@dataclass(frozen=True)
class ListedPart:
    """One part of a set as it was found: `paths` of its files; for each of N pictures its file's number, offset, bytes, name; labels int64 (N,)."""

    paths: tuple[str, ...]
    file: np.ndarray
    offset: np.ndarray
    bytes: np.ndarray
    names: tuple[str, ...]
    labels: np.ndarray


def write_listing(part: ListedPart, chosen: np.ndarray, work: Path, name: str) -> tuple[File, File, File]:
    """(rows, labels, paths) of the `chosen` pictures (n,), as `<name>_*` in `work`. Raises UsageError for a name with a line break."""
    broken = next((path for path in part.paths if "\n" in path), None)
    if broken is not None:
        raise UsageError(f"{broken!r}: a file name with a line break cannot be listed; rename it")
    marks = np.array([_mark(part.names[number]) for number in chosen], dtype=np.int64)
    rows = np.stack([part.file[chosen], part.offset[chosen], part.bytes[chosen], marks], axis=1).astype(np.int64)
    paths = work / f"{name}_paths.txt"
    paths.write_bytes(b"".join(os.fsencode(path) + b"\n" for path in part.paths))
    return (
        npy.write_array(work / f"{name}_rows.npy", rows),
        npy.write_array(work / f"{name}_labels.npy", part.labels[chosen]),
        File.of(paths),
    )


def _mark(name: str) -> int:
    """63 bits that stand for a picture's name."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=8).digest(), "little") >> 1


def decode_evaluation_view(content: bytes, size: int) -> np.ndarray:
    """A file's picture, short side to 256 / 224 of `size`, its centre: uint8 (size, size, 3). Raises what Pillow raises on a broken file."""
    from compress.data.decode import decode_image  # needs Pillow, which training on arrays does without

    side = size_with_margin(size)
    offset = (side - size) // 2
    return decode_image(content, side)[offset : offset + size, offset : offset + size]


class Listing:
    """N pictures. Indexed like an array, it answers with pictures as in evaluation: uint8 (n, S, S, 3), S = image_size."""

    def __init__(self, spec: ListingSpec) -> None:
        self.spec = spec
        self.rows = np.load(spec.rows, mmap_mode="r", allow_pickle=False)
        self._paths = np.memmap(spec.paths, np.uint8, "r")
        self._ends = np.flatnonzero(self._paths == ord("\n"))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        size = self.spec.image_size
        return np.concatenate([np.empty((0, size, size, 3), np.uint8), *self.evaluated(positions)])

    def path(self, position: int) -> Path:
        """The picture's file, or the shard that holds it."""
        return self.file(int(self.rows[position, 0]))

    def file(self, number: int) -> Path:
        """The file of a number in `rows`."""
        begin = 0 if number == 0 else int(self._ends[number - 1]) + 1
        return self.spec.root / os.fsdecode(self._paths[begin : self._ends[number]].tobytes())

    def decoded(self, position: int, make: Callable[[bytes], np.ndarray]) -> np.ndarray:
        """What `make` makes of the picture's bytes. Raises StageError, with the picture's path, where that cannot be done."""
        from compress.data import decode

        offset, size = int(self.rows[position, 1]), int(self.rows[position, 2])
        try:
            with self.path(position).open("rb") as stream:
                stream.seek(offset)
                content = stream.read(size)
            if len(content) < size or not content:
                raise ValueError(f"{len(content):,} of {size:,} bytes are there" if size else "the file is empty")
            return make(content)
        except decode.DECODE_ERRORS as error:
            raise StageError(
                f"{self._called(position)} cannot be read ({decode.failure_reason(error)}); repair or replace it, then run the same command again"
            ) from error

    def _called(self, position: int) -> str:
        """A picture's name in a message; that of one in a shard is looked up there."""
        path, offset = self.path(position), int(self.rows[position, 1])
        if path.suffix != ".tar":
            return str(path)
        try:
            with tarfile.open(path, "r:") as shard:
                return f"{path}: {next((member.name for member in shard if member.offset_data == offset), f'the picture at byte {offset:,}')}"
        except (tarfile.TarError, OSError):
            return f"{path}: the picture at byte {offset:,}"

    def evaluated(
        self, positions: Iterable[int] | np.ndarray, report: Report = lambda text: None, what: str = ""
    ) -> Iterator[np.ndarray]:
        """Blocks (n, S, S, 3) of pictures in order, see `decode_evaluation_view`; decoded in threads, a progress line every few seconds."""
        from compress.data import decode

        told, wanted = time.monotonic(), [int(position) for position in positions]
        make = partial(decode_evaluation_view, size=self.spec.image_size)
        with decode.strict_pillow(), ThreadPoolExecutor(min(16, (os.cpu_count() or 1) + 1)) as pool:
            for start in range(0, len(wanted), CHUNK):
                yield np.stack(list(pool.map(partial(self.decoded, make=make), wanted[start : start + CHUNK])))
                if time.monotonic() - told > PROGRESS_SECONDS:
                    told = time.monotonic()
                    report(f"data: decoded {min(start + CHUNK, len(wanted)):,} of {len(wanted):,} {what} pictures")
