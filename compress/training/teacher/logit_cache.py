"""A teacher's logits, remembered per (picture, view): in memory within a run, on disk for every later run.

Logits are rounded to float16 whether or not they are remembered, so a run with a full cache trains the same student as one without.
The disk copy is addressed by content: teacher weights, its normalisation, pictures, picture size, view scheme and precision;
methods, students and seeds share it.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from compress.core.files import replacing
from compress.core.locks import locked
from compress.training.precision import rounded
from compress.training.schedule import SIDE, rows_at_once

MEMORY_LIMIT = 2 * 2**30  # bytes; beyond it the teacher simply runs
CUDA_BATCH_SIZES = {
    "cuda": 4
}  # rows ahead come in so many sizes: cuDNN prepares its kernels for each number of rows anew, and what is not known is any number
# Pixels of pictures that it is asked for at once, or a window of steps; asking waits for all steps before it: of CIFAR once an epoch.
PREFETCH_PIXELS = 64 * 2**20
CPU_ROW_MULTIPLE = 16  # rows on a CPU are a multiple of: few rows, and with several threads odd ones, take another matrix kernel, whose last bits differ


class TeacherCache:
    """Answers (index, view) with logits, running `compute_logits` only for what it does not know.

    Nothing is allocated or read before it is asked for the first time, or `opened`: until then `table`, `room` and `enabled` say what it would take.

    Args:
        compute_logits: raw pixels uint8 (M, H, W, 3) -> logits (M, K), without gradient.
        pictures: how many pictures the indices may name. views: how many views each has. classes: K. image_size: the larger side that `compute_logits` works on.
        folder: where the disk copy lives, or None. warn: told about a disk copy that cannot be used, and once where the memory is full.
        remember: false: every batch is run. recordable: whether `answer` stays on the device. runs_on: where `compute_logits` computes, if not on `device`.
    """

    def __init__(
        self,
        compute_logits: Callable[[Tensor], Tensor],
        *,
        pictures: int,
        views: int,
        classes: int,
        device: str,
        folder: Path | None,
        warn: Callable[[str], None],
        remember: bool = True,
        image_size: int = SIDE,
        recordable: bool = True,
        runs_on: str | None = None,
    ) -> None:
        self.compute_logits, self.warn = compute_logits, warn
        self.image_size = image_size
        self.recordable, self.device, self.classes, self.runs_on = recordable, device, classes, runs_on or device
        self._rows: Tensor | None = None  # on the device: a recorded step counts, too
        self.file = folder / "logits.npz" if folder else None
        self.pictures, self.views, self.table = pictures, views, pictures * views * 4  # bytes
        self.capacity, self.is_full = (MEMORY_LIMIT - self.table) // (classes * 2), False
        self.enabled, self._open = remember and self.capacity > 0, False
        self.used = self.saved = 0
        self._read: tuple[int, int, int] | None = None  # which disk copy is known: inode, bytes, modification time
        self._damaged: tuple[int, int, int] | None = None  # which one was said to be unusable
        self._write_warning_shown = False  # that the disk copy cannot be written

    def ensure_loaded(self) -> TeacherCache:
        """Itself, with its memory and what the disk knows."""
        if self.enabled and not self._open:
            self._open = True
            self.slot = torch.full((self.pictures, self.views), -1, dtype=torch.int32, device=self.device)
            self.logits = torch.empty((0, self.classes), dtype=torch.float16, device=self.device)
            self._load()
            self.saved = self.used
        return self

    @property
    def prefetch_limit(self) -> int:
        """Pictures that it may be asked for ahead of their steps at once: none beyond a window's of a teacher that a card waits for anyway."""
        return PREFETCH_PIXELS // self.image_size**2 if self.runs_on == self.device else 0

    def prefetch_logits(self, index: Tensor, view: Tensor, pixels: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Logits float16 (M, K) of the steps to come, index and view (M,) int64: what is not known is run in large batches, so that no step waits.

        `pixels` answers (index, view) with uint8 (B, H, W, 3).
        """
        most, even = self._sizes()
        if not self.enabled:
            return torch.cat(
                [self._run(pixels(*part), even) for part in zip(index.split(most), view.split(most), strict=True)]
            )
        self.ensure_loaded()
        slot = self.slot[index, view].long()
        unknown = torch.nonzero(slot < 0).squeeze(1)
        if not len(unknown):
            return self.logits[slot]
        out = self.logits.new_empty((len(index), self.logits.shape[1]))
        known = slot >= 0
        out[known] = self.logits[slot[known]]
        for places in unknown.split(most):
            some, views = index[places], view[places]
            fresh = self._run(pixels(some, views), even)
            out[places] = fresh
            if self.used + len(fresh) <= self.capacity:
                self._remember(some, views, fresh)
            elif not self.is_full:
                self.is_full = True
                self.warn(
                    f"teacher logits: {self.used:,} rows fill the {MEMORY_LIMIT / 2**20:,.0f} MiB that they may take; for other views the teacher runs"
                )
        return out

    def forward(self, cached_logits: Tensor | None, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits alone, as `step.Teaching` asks."""
        return (self._run(pixels) if cached_logits is None else cached_logits).float(), {}

    @property
    def rows_run(self) -> int:
        """Rows that the teacher network computed; waits for the device."""
        return 0 if self._rows is None else int(self._rows)

    def merge(self, gather: Callable[[Tensor], Tensor]) -> None:
        """Learn what the other processes' teachers said. `gather`: rows of one process -> rows of all."""
        if not self.enabled:
            return
        self.ensure_loaded()
        index, view = torch.nonzero(self.slot >= self.saved, as_tuple=True)
        rows = gather(self.logits[self.slot[index, view].long()])
        index, view = gather(index), gather(view)
        self._learn(index, view, rows)

    def _sizes(self) -> tuple[int, int]:
        """Rows at once, and what they and fewer are multiples of."""
        most = rows_at_once(self.runs_on, self.image_size)
        kind = torch.device(self.runs_on).type
        if kind == "cpu":
            return most, CPU_ROW_MULTIPLE
        even = max(most // CUDA_BATCH_SIZES.get(kind, most), 1)
        return most // even * even, even

    def save(self) -> None:
        """Write what is new to disk, beside what other runs have written since; where that cannot be, it is said, and later runs ask the teacher again."""
        if not self._open or self.file is None or self.used == self.saved:
            return
        try:
            with locked(self.file.with_suffix(".lock")):
                self._load()
                index, view = torch.nonzero(self.slot >= 0, as_tuple=True)
                rows = self.logits[: self.used].cpu()[
                    self.slot[index, view].long().cpu()
                ]  # a card may have no room for a copy
                with replacing(self.file) as stream:
                    np.savez(
                        stream,
                        index=index.cpu().numpy().astype(np.int32),
                        view=view.cpu().numpy().astype(np.int32),
                        logits=rows.numpy(),
                    )
                self._read = _version(self.file)
        except (OSError, torch.OutOfMemoryError) as error:
            if not self._write_warning_shown:
                why = getattr(error, "strerror", None) or str(error).splitlines()[0]
                self.warn(f"teacher logits: {self.file} cannot be written ({why}); a later run asks the teacher again")
            self._write_warning_shown = True
            return
        self.saved = self.used

    def _run(self, pixels: Tensor, even: int = 1) -> Tensor:
        """`even`: what the number of rows that run is a multiple of."""
        count = len(pixels)
        if self._rows is None:
            self._rows = torch.zeros((), dtype=torch.int64, device=pixels.device)
        self._rows += count
        missing = -count % even
        if missing:
            pixels = torch.cat([pixels, pixels[:1].expand(missing, *pixels.shape[1:])])
        return rounded(self.compute_logits(pixels)[:count])

    def _remember(self, index: Tensor, view: Tensor, fresh: Tensor) -> None:
        end = self.used + len(fresh)
        if end > len(self.logits):  # grow by doubling, so that appending stays cheap
            grown = self.logits.new_empty((min(max(end, 2 * len(self.logits), 4096), self.capacity), fresh.shape[1]))
            grown[: self.used] = self.logits[: self.used]
            self.logits = grown
        self.logits[self.used : end] = fresh
        self.slot[index, view] = torch.arange(self.used, end, dtype=torch.int32, device=self.slot.device)
        self.used = end

    def _learn(self, index: Tensor, view: Tensor, rows: Tensor) -> None:
        """Remember what is not known of these, as far as there is room."""
        new = self.slot[index, view] < 0
        new &= torch.cumsum(new, 0) <= self.capacity - self.used
        self._remember(index[new], view[new], rows[new])

    def _load(self) -> None:
        """Take what the disk copy knows, unless it was taken before; one that is damaged is left out, and written anew at the end."""
        file = self.file
        if file is None or not file.is_file() or (version := _version(file)) == self._read:
            return
        try:
            with (
                file.open("rb") as stream,
                np.load(stream, allow_pickle=False) as data,
            ):  # opened here: numpy leaves a damaged one open
                index, view, rows = (data[name] for name in ("index", "view", "logits"))
            self._check(index, view, rows)
        except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile) as error:
            if version != self._damaged:
                self.warn(f"{file} cannot be used ({error}); the teacher runs again and the file is written anew")
            self._damaged = version
            return
        pictures, numbers = (torch.from_numpy(part.astype(np.int64)).to(self.slot.device) for part in (index, view))
        if self.used:
            self._learn(pictures, numbers, torch.from_numpy(rows).to(self.slot.device))
        else:
            count = min(len(rows), self.capacity)
            self.logits = torch.from_numpy(rows[:count]).to(
                self.slot.device
            )  # itself: it may be as large as all that may be remembered
            self.slot[pictures[:count], numbers[:count]] = torch.arange(
                count, dtype=torch.int32, device=self.slot.device
            )
            self.used = count
        self._read = version  # now that it is known: a card's memory may have been full

    def _check(self, index: np.ndarray, view: np.ndarray, rows: np.ndarray) -> None:
        """Raises ValueError where the arrays are not this cache's."""
        if not np.isfinite(rows).all():
            raise ValueError("logits that are not finite")
        if (
            rows.dtype != np.float16
            or rows.shape[1:] != self.logits.shape[1:]
            or not index.shape == view.shape == rows.shape[:1]
        ):
            raise ValueError(f"logits {rows.dtype} {rows.shape} for {index.shape} pictures")
        for part, limit in zip((index, view), self.slot.shape, strict=True):
            if part.dtype.kind != "i" or (len(part) and not (0 <= part.min() and part.max() < limit)):
                raise ValueError(f"a picture or view outside of 0 to {limit - 1}")


def _version(file: Path) -> tuple[int, int, int]:
    """What changes when a file is replaced."""
    status = file.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
