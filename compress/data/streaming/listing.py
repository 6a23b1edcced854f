"""Images that stay in their files: which file, where in it, how many bytes. Torch-free.

A listing is three files that the data stage writes: rows int64 (N, 4) of [file number, offset, bytes, hash of the
name]; the files' paths relative to the root, one a line; and the labels. A training's cache key covers the rows and the
labels. Images are decoded on demand.
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

CHUNK = 256  # images decoded before they are handed on
PROGRESS_SECONDS = 5.0

Report = Callable[[str], None]


def size_with_margin(image_size: int) -> int:
    """Return the size of a photo's short side before its centre of `image_size` pixels is cropped: 256 for 224."""
    return round(image_size * 256 / 224)


@dataclass(frozen=True)
class ListingSpec:
    """All that a process needs to open a listing: its files, the root of its paths, the side of decoded images."""

    root: Path
    rows: Path
    paths: Path
    image_size: int


@dataclass(frozen=True)
class ListedPart:
    """One part of a set as it was found.

    Attributes:
        paths: The files.
        file: For each image, the number of its file, int64 (N,).
        offset: For each image, its first byte in that file, int64 (N,).
        bytes: For each image, its length, int64 (N,).
        names: For each image, its name.
        labels: Class numbers, int64 (N,).
    """

    paths: tuple[str, ...]
    file: np.ndarray
    offset: np.ndarray
    bytes: np.ndarray
    names: tuple[str, ...]
    labels: np.ndarray


def write_listing(part: ListedPart, chosen: np.ndarray, work: Path, name: str) -> tuple[File, File, File]:
    """Write rows, labels and paths of the chosen images as `<name>_*` in `work`.

    Args:
        part: Images to choose from.
        chosen: Their positions, int64 (n,).
        work: Folder to write into.
        name: Prefix of the files.

    Returns:
        The files of rows, labels and paths.

    Raises:
        UsageError: A file name contains a line break.
    """
    broken = next((path for path in part.paths if "\n" in path), None)
    if broken is not None:
        raise UsageError(f"{broken!r}: a file name with a line break cannot be listed; rename it")
    hashes = np.array([_name_hash(part.names[number]) for number in chosen], dtype=np.int64)
    rows = np.stack([part.file[chosen], part.offset[chosen], part.bytes[chosen], hashes], axis=1).astype(np.int64)
    paths = work / f"{name}_paths.txt"
    paths.write_bytes(b"".join(os.fsencode(path) + b"\n" for path in part.paths))
    return (
        npy.write_array(work / f"{name}_rows.npy", rows),
        npy.write_array(work / f"{name}_labels.npy", part.labels[chosen]),
        File.of(paths),
    )


def _name_hash(name: str) -> int:
    """Return a 63-bit hash of an image's name."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=8).digest(), "little") >> 1


def decode_evaluation_view(content: bytes, size: int) -> np.ndarray:
    """Decode a file's bytes as for evaluation, uint8 (size, size, 3).

    The short side is resized to 256 / 224 of `size`, then the centre is cropped. Raises one of `decode.DECODE_ERRORS`
    on a broken file.
    """
    from compress.data.decode import decode_image  # needs Pillow, which training on arrays does without

    side = size_with_margin(size)
    offset = (side - size) // 2
    return decode_image(content, side)[offset : offset + size, offset : offset + size]


class Listing:
    """N images in files. Indexed by positions like an array, it returns evaluation views, uint8 (n, S, S, 3)."""

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
        """Return the image's file, or the shard that holds it."""
        return self.file(int(self.rows[position, 0]))

    def file(self, number: int) -> Path:
        """Return the file with a number of `rows`."""
        begin = 0 if number == 0 else int(self._ends[number - 1]) + 1
        return self.spec.root / os.fsdecode(self._paths[begin : self._ends[number]].tobytes())

    def decoded(self, position: int, decode: Callable[[bytes], np.ndarray]) -> np.ndarray:
        """Read the image's bytes and return what `decode` makes of them.

        Raises:
            StageError: The image cannot be read; the message has its path.
        """
        from compress.data.decode import DECODE_ERRORS, failure_reason

        offset, size = int(self.rows[position, 1]), int(self.rows[position, 2])
        try:
            with self.path(position).open("rb") as stream:
                stream.seek(offset)
                content = stream.read(size)
            if len(content) < size or not content:
                raise ValueError(f"only {len(content):,} of {size:,} bytes exist" if size else "the file is empty")
            return decode(content)
        except DECODE_ERRORS as error:
            raise StageError(
                f"{self._name(position)} cannot be read ({failure_reason(error)}); "
                "repair or replace it, then run the same command again"
            ) from error

    def _name(self, position: int) -> str:
        """Return an image's name for a message; for an image in a shard, the shard is searched for it."""
        path, offset = self.path(position), int(self.rows[position, 1])
        if path.suffix != ".tar":
            return str(path)
        unnamed = f"the image at byte {offset:,}"
        try:
            with tarfile.open(path, "r:") as shard:
                return f"{path}: {next((member.name for member in shard if member.offset_data == offset), unnamed)}"
        except (tarfile.TarError, OSError):
            return f"{path}: {unnamed}"

    def evaluated(
        self, positions: Iterable[int] | np.ndarray, report: Report = lambda text: None, what: str = ""
    ) -> Iterator[np.ndarray]:
        """Decode evaluation views in order, in threads, and report progress every few seconds.

        Args:
            positions: Images to decode, (n,).
            report: Receives one progress line at a time.
            what: Adjective for the progress line, such as "test".

        Yields:
            Blocks uint8 (m, S, S, 3).
        """
        from compress.data.decode import quiet_pillow

        reported, wanted = time.monotonic(), [int(position) for position in positions]
        decode = partial(decode_evaluation_view, size=self.spec.image_size)
        with quiet_pillow(), ThreadPoolExecutor(min(16, (os.cpu_count() or 1) + 1)) as pool:
            for start in range(0, len(wanted), CHUNK):
                yield np.stack(list(pool.map(partial(self.decoded, decode=decode), wanted[start : start + CHUNK])))
                if time.monotonic() - reported > PROGRESS_SECONDS:
                    reported = time.monotonic()
                    report(f"data: decoded {min(start + CHUNK, len(wanted)):,} of {len(wanted):,} {what} images")
