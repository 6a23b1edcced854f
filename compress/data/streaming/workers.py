"""Decode processes: training views in the order of the training, ahead of it, in memory that all processes see. Torch-free.

A view is a function of (file, view number), so neither the number of processes nor which of them decodes a picture changes a pixel.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache, partial
from multiprocessing.connection import wait as wait_for
from typing import BinaryIO

import numpy as np

from compress.core.errors import LostProcess
from compress.data.augment.crops import decode_training_view
from compress.data.streaming.listing import Listing, ListingSpec, decode_evaluation_view

CHUNK = 8  # pictures of one task
AHEAD = 2  # tasks a process that are under way or wait
IDLE_GRACE_SECONDS = 10.0  # seconds without work behind a SIGTERM: then the training has ended, or will not

Asked = tuple[np.ndarray, np.ndarray]  # positions, views, int64 (n,)


def default_workers() -> int:
    """A process for each core that this one may use, shared with the other processes of a torchrun on this machine; at most 32."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(32, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


@dataclass(frozen=True)
class Job:
    """What a decode process needs to know. The ring `path` is uint8 (slots, rows, S, S, 3)."""

    spec: ListingSpec
    augment: str
    path: str
    slots: int
    rows: int

    def ring(self) -> np.ndarray:
        """The ring, as this process sees it."""
        side = self.spec.image_size
        return np.memmap(self.path, np.uint8, "r+", shape=(self.slots, self.rows, side, side, 3))


class Decoders:
    """Training views of a listing, decoded ahead by `workers` processes, which start when first asked and live until `close`."""

    def __init__(self, spec: ListingSpec, *, augment: str, workers: int) -> None:
        if augment not in ("resized_crop", "none"):
            raise ValueError(f"augment must be 'resized_crop' or 'none', got {augment!r}")
        self.spec, self.augment, self.workers = spec, augment, workers
        self.pool: ProcessPoolExecutor | None = None
        self.memory: BinaryIO | None = None
        self.job: Job | None = None

    def batches(self, asked: Iterable[Asked], rows: int) -> Iterator[np.ndarray]:
        """uint8 (n, S, S, 3) for each (positions, views) of at most `rows` pictures, in order; one is whole until the next is asked for.

        Raises StageError for a picture that cannot be read (with its path) and for a decode process that is gone.
        """
        job, pool = self._start(rows)
        ring, free, source = job.ring(), deque(range(job.slots)), iter(asked)
        waiting: deque[tuple[int, int, list[Future[None]]]] = deque()
        try:
            while True:
                while free and (next_one := next(source, None)) is not None:
                    slot = free.popleft()
                    waiting.append((slot, len(next_one[0]), _submitted(pool, job, slot, *next_one)))
                if not waiting:
                    return
                slot, count, tasks = waiting[0]
                for task in tasks:
                    task.result()
                waiting.popleft()
                yield ring[slot, :count]
                free.append(slot)
        except BrokenProcessPool as error:
            raise LostProcess(
                "a decode process is gone (killed, or out of memory); run the same command again to resume, with fewer processes: --set data.workers=N"
            ) from error
        finally:  # nothing may write into the ring when it is used again
            left = [task for _, _, tasks in waiting for task in tasks if not task.cancel()]
            wait(left)

    def _start(self, rows: int) -> tuple[Job, ProcessPoolExecutor]:
        if self.pool is not None and self.job is not None and self.job.rows >= rows:
            return self.job, self.pool
        self.close()
        slots = 2 + -(
            -AHEAD * self.workers * CHUNK // rows
        )  # one that is read, one that is nearly done, and work for every process
        self.memory, path = _memory(slots * rows * self.spec.image_size**2 * 3)
        self.job = Job(self.spec, self.augment, path, slots, rows)
        # spawn: a fork of a process with torch's threads, or CUDA, can hang
        self.pool = ProcessPoolExecutor(
            self.workers, mp_context=multiprocessing.get_context("spawn"), initializer=_begin
        )
        return self.job, self.pool

    def close(self) -> None:
        """End the processes and give the memory back."""
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)
        if self.memory is not None:
            self.memory.close()
        self.pool = self.memory = self.job = None


def _memory(size: int) -> tuple[BinaryIO, str]:
    """Memory that other processes open by path, and that is gone with this process. Not /dev/shm: a container's is often 64 MB."""
    memory: BinaryIO
    if sys.platform == "linux":
        memory = os.fdopen(os.memfd_create("views"), "r+b")
        path = f"/proc/{os.getpid()}/fd/{memory.fileno()}"
    else:
        named = tempfile.NamedTemporaryFile()
        memory, path = named, named.name  # type: ignore[assignment]
    os.truncate(memory.fileno(), size)
    return memory, path


def _submitted(
    pool: ProcessPoolExecutor, job: Job, slot: int, positions: np.ndarray, views: np.ndarray
) -> list[Future[None]]:
    starts = range(0, len(positions), CHUNK)
    return [
        pool.submit(
            _decode, job, slot, start, positions[start : start + CHUNK].tolist(), views[start : start + CHUNK].tolist()
        )
        for start in starts
    ]


def _begin() -> None:
    """In a decode process: Ctrl-C is the training's to handle, and a training that is killed takes its decoders along.

    SIGTERM is the training's, too, which ends between two steps and still wants pictures: schedulers and torchrun send it to every process of a job.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=_leave_when_idle, daemon=True).start())
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_leave_with, args=(parent.sentinel,), daemon=True).start()


def _leave_with(sentinel: int) -> None:
    wait_for([sentinel])
    os._exit(0)


_worked = 0.0  # when this decode process last had work, by time.monotonic


def _leave_when_idle() -> None:
    begin = time.monotonic()
    while (idle := time.monotonic() - max(begin, _worked)) < IDLE_GRACE_SECONDS:
        time.sleep(IDLE_GRACE_SECONDS - idle)
    os._exit(0)


@lru_cache(maxsize=1)
def _opened(job: Job) -> tuple[Listing, np.ndarray]:
    return Listing(job.spec), job.ring()


def _decode(job: Job, slot: int, row: int, positions: list[int], views: list[int]) -> None:
    """Decode some pictures into their rows of a slot. Raises StageError with the path of one that cannot be read."""
    from compress.data.decode import strict_pillow

    global _worked
    _worked = time.monotonic()
    listing, ring = _opened(job)
    size = job.spec.image_size
    with strict_pillow():
        for number, (position, view) in enumerate(zip(positions, views, strict=True), row):
            make = (
                partial(decode_training_view, view=view, size=size)
                if job.augment == "resized_crop"
                else partial(decode_evaluation_view, size=size)
            )
            ring[slot, number] = listing.decoded(position, make)
