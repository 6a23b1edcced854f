"""A cache of the teacher's logits per (image, view): in memory within a run, on disk for every later run.

Logits are rounded to float16 whether or not they are cached, so a run with a full cache trains the same student as one
without. The disk copy lies in a folder named by the hash of all that the logits depend on (`identity` in
`signals.teacher_cache`). Methods, students and seeds share it.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.core.files import replacing
from compress.core.locks import locked
from compress.training.forward_batch import REFERENCE_SIDE, rows_at_once
from compress.training.precision import round_logits

# Bytes of table and logits. Beyond it the teacher runs again.
MEMORY_LIMIT = 2 * 2**30
# Prefetched batches are padded to one of four sizes, because cuDNN tunes its kernels again for every new batch size.
CUDA_BATCH_SIZES = {"cuda": 4}
# Pixels of images that are prefetched at once, where that is more than `batches.PREFETCH_STEPS`. A prefetch waits for
# all steps before it: once an epoch on CIFAR.
PREFETCH_PIXELS = 64 * 2**20
# CPU batches are padded to a multiple of this: other sizes use another GEMM kernel, which changes the last bits.
CPU_ROW_MULTIPLE = 16


class TeacherCache:
    """A `step.TeacherSource` that runs the teacher only for logits it does not hold.

    Nothing is allocated or read before the first prefetch or `ensure_loaded`; until then `table`, `capacity` and
    `enabled` tell what the cache would take.

    Args:
        compute_logits: maps pixels uint8 (M, H, W, 3) to logits (M, K), without gradient.
        images: how many images the indices may name.
        views: how many views each has.
        classes: K.
        device: where the cache lies, and the training.
        folder: where the disk copy lies, or None.
        warn: called about a disk copy that cannot be used or written, and once when the memory is full.
        remember: False: run every batch and keep nothing.
        image_size: the larger side that the teacher works on, in pixels.
        recordable: whether `forward` stays on the device.
        runs_on: where `compute_logits` computes, if not on `device`.

    Attributes:
        table: bytes of the table that maps (image, view) to a row.
        capacity: rows that fit beside it.
        used: rows held.
    """

    def __init__(
        self,
        compute_logits: Callable[[Tensor], Tensor],
        *,
        images: int,
        views: int,
        classes: int,
        device: str,
        folder: Path | None,
        warn: Callable[[str], None],
        remember: bool = True,
        image_size: int = REFERENCE_SIDE,
        recordable: bool = True,
        runs_on: str | None = None,
    ) -> None:
        self.compute_logits, self.warn = compute_logits, warn
        self.image_size = image_size
        self.recordable, self.device, self.classes, self.runs_on = recordable, device, classes, runs_on or device
        # On the device, because a recorded step counts its rows too.
        self._rows: Tensor | None = None
        self.file = folder / "logits.npz" if folder else None
        self.images, self.views, self.table = images, views, images * views * 4
        self.capacity, self.is_full = (MEMORY_LIMIT - self.table) // (classes * 2), False
        self.enabled, self._open = remember and self.capacity > 0, False
        self.used = self.saved = 0
        # The disk copies that were read and that were reported as damaged: inode, bytes, modification time.
        self._read: tuple[int, int, int] | None = None
        self._damaged: tuple[int, int, int] | None = None
        self._write_warning_shown = False

    def ensure_loaded(self) -> TeacherCache:
        """Allocate the table and read the disk copy, once; return the cache itself."""
        if self.enabled and not self._open:
            self._open = True
            self.slot = torch.full((self.images, self.views), -1, dtype=torch.int32, device=self.device)
            self.logits = torch.empty((0, self.classes), dtype=torch.float16, device=self.device)
            self._load()
            self.saved = self.used
        return self

    @property
    def prefetch_limit(self) -> int:
        """How many images to prefetch per call; 0 if the teacher runs on another device than training."""
        return PREFETCH_PIXELS // self.image_size**2 if self.runs_on == self.device else 0

    def prefetch_logits(self, index: Tensor, view: Tensor, pixels: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Return the logits of coming steps, float16 (M, K); missing ones are computed in large batches.

        Args:
            index: images, int64 (M,).
            view: their views, int64 (M,).
            pixels: maps index and view (B,) to uint8 (B, H, W, 3).
        """
        most, multiple = self._batch_sizes()
        if not self.enabled:
            parts = zip(torch.split(index, most), torch.split(view, most), strict=True)
            return torch.cat([self._compute(pixels(*part), multiple) for part in parts])
        self.ensure_loaded()
        slot = self.slot[index, view].long()
        unknown = torch.nonzero(slot < 0).squeeze(1)
        if not len(unknown):
            return self.logits[slot]
        out = self.logits.new_empty((len(index), self.logits.shape[1]))
        known = slot >= 0
        out[known] = self.logits[slot[known]]
        # With balanced sampling a view may be asked for twice at once.
        pairs, place = torch.unique(index[unknown] * self.views + view[unknown], return_inverse=True)
        if len(pairs) < len(unknown):
            out[unknown] = self.prefetch_logits(pairs // self.views, pairs % self.views, pixels)[place]
            return out
        for places in torch.split(unknown, most):
            some, views = index[places], view[places]
            fresh = self._compute(pixels(some, views), multiple)
            out[places] = fresh
            if self.used + len(fresh) <= self.capacity:
                self._store(some, views, fresh)
            elif not self.is_full:
                self.is_full = True
                self.warn(
                    f"teacher logits: {self.used:,} rows fill the {MEMORY_LIMIT / 2**20:,.0f} MiB that they may take; "
                    "for other views the teacher runs"
                )
        return out

    def forward(self, cached_logits: Tensor | None, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a batch's logits, float32 (N, K), and no maps; see `step.TeacherSource`."""
        return (self._compute(pixels) if cached_logits is None else cached_logits).float(), {}

    @property
    def rows_run(self) -> int:
        """Rows that the teacher has computed; waits for the device."""
        return 0 if self._rows is None else int(self._rows)

    def merge(self, gather: Callable[[Tensor], Tensor]) -> None:
        """Add the rows that the other ranks' teachers have computed; see `step.TeacherSource`."""
        if not self.enabled:
            return
        self.ensure_loaded()
        index, view = torch.nonzero(self.slot >= self.saved, as_tuple=True)
        rows = gather(self.logits[self.slot[index, view].long()])
        index, view = gather(index), gather(view)
        self._store_new(index, view, rows)

    def _batch_sizes(self) -> tuple[int, int]:
        """Return the most rows per call, and what their number is a multiple of."""
        most = rows_at_once(self.runs_on, self.image_size)
        kind = torch.device(self.runs_on).type
        if kind == "cpu":
            return most, CPU_ROW_MULTIPLE
        multiple = max(most // CUDA_BATCH_SIZES.get(kind, most), 1)
        return most // multiple * multiple, multiple

    def save(self) -> None:
        """Write new rows to disk, beside those that other runs have written since.

        Where that fails, a warning is shown once, and later runs compute the logits again.
        """
        if not self._open or self.file is None or self.used == self.saved:
            return
        try:
            with locked(self.file.with_suffix(".lock")):
                self._load()
                index, view = torch.nonzero(self.slot >= 0, as_tuple=True)
                # Chosen on the CPU: a GPU may have no memory left for a copy.
                rows = self.logits[: self.used].cpu()[self.slot[index, view].long().cpu()]
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

    def _compute(self, pixels: Tensor, multiple: int = 1) -> Tensor:
        """Run the teacher on a number of rows that is padded to a multiple."""
        count = len(pixels)
        if self._rows is None:
            self._rows = torch.zeros((), dtype=torch.int64, device=pixels.device)
        self._rows += count
        missing = -count % multiple
        if missing:
            pixels = torch.cat([pixels, pixels[:1].expand(missing, *pixels.shape[1:])])
        return round_logits(self.compute_logits(pixels)[:count])

    def _store(self, index: Tensor, view: Tensor, rows: Tensor) -> None:
        end = self.used + len(rows)
        # Grow by doubling, so that appending stays cheap.
        if end > len(self.logits):
            grown = self.logits.new_empty((min(max(end, 2 * len(self.logits), 4096), self.capacity), rows.shape[1]))
            grown[: self.used] = self.logits[: self.used]
            self.logits = grown
        self.logits[self.used : end] = rows
        self.slot[index, view] = torch.arange(self.used, end, dtype=torch.int32, device=self.slot.device)
        self.used = end

    def _store_new(self, index: Tensor, view: Tensor, rows: Tensor) -> None:
        """Store the rows that are not held yet, as far as there is room."""
        new = self.slot[index, view] < 0
        new &= torch.cumsum(new, 0) <= self.capacity - self.used
        self._store(index[new], view[new], rows[new])

    def _load(self) -> None:
        """Add the rows of a disk copy that was not read before; a damaged one is ignored and replaced at the end."""
        file = self.file
        if file is None or not file.is_file() or (version := _version(file)) == self._read:
            return
        try:
            # Opened here, because numpy leaves a damaged file open.
            with file.open("rb") as stream, np.load(stream, allow_pickle=False) as data:
                index, view, rows = (data[name] for name in ("index", "view", "logits"))
            self._check(index, view, rows)
        except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile) as error:
            if version != self._damaged:
                self.warn(f"{file} cannot be used ({error}); the teacher runs again and the file is written anew")
            self._damaged = version
            return
        images, views = (torch.from_numpy(part.astype(np.int64)).to(self.slot.device) for part in (index, view))
        if self.used:
            self._store_new(images, views, torch.from_numpy(rows).to(self.slot.device))
        else:
            # The array itself, without a copy: it may be as large as all that may be held.
            count = min(len(rows), self.capacity)
            self.logits = torch.from_numpy(rows[:count]).to(self.slot.device)
            rows_of = torch.arange(count, dtype=torch.int32, device=self.slot.device)
            self.slot[images[:count], views[:count]] = rows_of
            self.used = count
        # Only now: a GPU's memory may have been full.
        self._read = version

    def _check(self, index: NDArray[Any], view: NDArray[Any], rows: NDArray[Any]) -> None:
        """Raise ValueError where the arrays are not this cache's."""
        if not np.isfinite(rows).all():
            raise ValueError("logits that are not finite")
        if (
            rows.dtype != np.float16
            or rows.shape[1:] != self.logits.shape[1:]
            or not index.shape == view.shape == rows.shape[:1]
        ):
            raise ValueError(f"logits {rows.dtype} {rows.shape} for {index.shape} images")
        for part, limit in zip((index, view), self.slot.shape, strict=True):
            if part.dtype.kind != "i" or (len(part) and not (0 <= part.min() and part.max() < limit)):
                raise ValueError(f"an image or view outside of 0 to {limit - 1}")


def _version(file: Path) -> tuple[int, int, int]:
    """Return what changes when a file is replaced: inode, bytes, modification time."""
    status = file.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
