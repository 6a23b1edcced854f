"""Decode processes: they decode training views ahead of the training, into memory that all processes share. Torch-free.

A view is a function of (file, view number), so neither the number of processes nor which of them decodes an image
changes a pixel.
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
from multiprocessing.connection import wait as wait_for_sentinel
from typing import BinaryIO

import numpy as np

from compress.core.errors import LostProcess
from compress.data.augment.crops import decode_training_view
from compress.data.streaming.listing import Listing, ListingSpec, decode_evaluation_view

IMAGES_PER_TASK = 8
TASKS_PER_WORKER = 2  # running or waiting
# Seconds without work after a SIGTERM: by then the training has ended, or never will.
IDLE_GRACE_SECONDS = 10.0

Request = tuple[np.ndarray, np.ndarray]  # positions and views, int64 (n,)


def default_workers() -> int:
    """Return one process for each core of this process, shared with the other local torchrun processes; at most 32."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(32, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


@dataclass(frozen=True)
class Job:
    """What a decode process needs to know; the ring buffer at `path` is uint8 (slots, rows, S, S, 3)."""

    spec: ListingSpec
    augment: str
    path: str
    slots: int
    rows: int
    crop_scale: tuple[float, float] | None

    def ring(self) -> np.ndarray:
        """Map the ring buffer into this process."""
        side = self.spec.image_size
        return np.memmap(self.path, np.uint8, "r+", shape=(self.slots, self.rows, side, side, 3))


class Decoders:
    """Training views of a listing, decoded ahead by processes that start on first use and live until `close`.

    Args:
        spec: The listing.
        augment: "resized_crop" or "none".
        workers: Number of processes.
        crop_scale: See `crops.decode_training_view`.
    """

    def __init__(
        self, spec: ListingSpec, *, augment: str, workers: int, crop_scale: tuple[float, float] | None = None
    ) -> None:
        if augment not in ("resized_crop", "none"):
            raise ValueError(f"augment must be 'resized_crop' or 'none', got {augment!r}")
        self.spec, self.augment, self.workers, self.crop_scale = spec, augment, workers, crop_scale
        self.pool: ProcessPoolExecutor | None = None
        self.memory: BinaryIO | None = None
        self.job: Job | None = None

    def batches(self, requests: Iterable[Request], rows: int) -> Iterator[np.ndarray]:
        """Yield a batch uint8 (n, S, S, 3) for each request of at most `rows` images, in order.

        A batch is valid until the next one is taken.

        Raises:
            StageError: An image cannot be read; the message has its path.
            LostProcess: A decode process died.
        """
        job, pool = self._start(rows)
        ring, free, source = job.ring(), deque(range(job.slots)), iter(requests)
        waiting: deque[tuple[int, int, list[Future[None]]]] = deque()
        try:
            while True:
                while free and (request := next(source, None)) is not None:
                    slot = free.popleft()
                    waiting.append((slot, len(request[0]), _submit(pool, job, slot, *request)))
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
                "a decode process died (killed, or out of memory); run the same command again to resume, with fewer "
                "processes: --set data.workers=N"
            ) from error
        finally:  # nothing may write into the ring when it is used again
            left = [task for _, _, tasks in waiting for task in tasks if not task.cancel()]
            wait(left)

    def _start(self, rows: int) -> tuple[Job, ProcessPoolExecutor]:
        if self.pool is not None and self.job is not None and self.job.rows >= rows:
            return self.job, self.pool
        self.close()
        # One slot being read, one nearly done, and work for every process.
        slots = 2 + -(-TASKS_PER_WORKER * self.workers * IMAGES_PER_TASK // rows)
        self.memory, path = _shared_memory(slots * rows * self.spec.image_size**2 * 3)
        self.job = Job(self.spec, self.augment, path, slots, rows, self.crop_scale)
        # Spawn: forking a process that has torch's threads or CUDA can hang.
        self.pool = ProcessPoolExecutor(
            self.workers, mp_context=multiprocessing.get_context("spawn"), initializer=_initialise_worker
        )
        return self.job, self.pool

    def close(self) -> None:
        """End the processes and free the memory."""
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)
        if self.memory is not None:
            self.memory.close()
        self.pool = self.memory = self.job = None


def _shared_memory(size: int) -> tuple[BinaryIO, str]:
    """Allocate memory that other processes open by path and that vanishes with this process.

    /dev/shm is not used: in a container it often has only 64 MB.
    """
    memory: BinaryIO
    if sys.platform == "linux":
        memory = os.fdopen(os.memfd_create("views"), "r+b")
        path = f"/proc/{os.getpid()}/fd/{memory.fileno()}"
    else:
        named = tempfile.NamedTemporaryFile()
        memory, path = named, named.name  # type: ignore[assignment]
    os.truncate(memory.fileno(), size)
    return memory, path


def _submit(
    pool: ProcessPoolExecutor, job: Job, slot: int, positions: np.ndarray, views: np.ndarray
) -> list[Future[None]]:
    parts = [slice(start, start + IMAGES_PER_TASK) for start in range(0, len(positions), IMAGES_PER_TASK)]
    return [
        pool.submit(_decode_task, job, slot, part.start, positions[part].tolist(), views[part].tolist())
        for part in parts
    ]


def _initialise_worker() -> None:
    """Set up a decode process: it ignores Ctrl-C and exits together with the training process.

    Schedulers and torchrun send SIGTERM to every process of a job. The training still needs images to end between two
    steps, so a decode process exits only once it is idle.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=_exit_when_idle, daemon=True).start())
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_with, args=(parent.sentinel,), daemon=True).start()


def _exit_with(sentinel: int) -> None:
    wait_for_sentinel([sentinel])
    os._exit(0)


_last_work = 0.0  # when this decode process last had work, by time.monotonic


def _exit_when_idle() -> None:
    begin = time.monotonic()
    while (idle := time.monotonic() - max(begin, _last_work)) < IDLE_GRACE_SECONDS:
        time.sleep(IDLE_GRACE_SECONDS - idle)
    os._exit(0)


@lru_cache(maxsize=1)
def _opened(job: Job) -> tuple[Listing, np.ndarray]:
    return Listing(job.spec), job.ring()


def _decode_task(job: Job, slot: int, row: int, positions: list[int], views: list[int]) -> None:
    """Decode some images into their rows of a slot. Raises StageError with the path of one that cannot be read."""
    from compress.data.decode import quiet_pillow

    global _last_work
    _last_work = time.monotonic()
    listing, ring = _opened(job)
    size = job.spec.image_size
    with quiet_pillow():
        for number, (position, view) in enumerate(zip(positions, views, strict=True), row):
            decode = (
                partial(decode_training_view, view=view, size=size, scale=job.crop_scale)
                if job.augment == "resized_crop"
                else partial(decode_evaluation_view, size=size)
            )
            ring[slot, number] = listing.decoded(position, decode)
