"""Locks between the processes of one machine: two runs that want the same result wait for each other."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

READ_SECONDS = 0.2  # a process that has just taken the lock needs a moment to write its number


@contextmanager
def locked(path: Path, on_wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the lock file `path`. The system frees it when the process ends, however it ends.

    Args:
        path: The lock file. It stays: removing it would let a third run lock a new one beside a waiter.
        on_wait: Called once before waiting, with the holder as ` (pid 1234)`, or with "" where it is not known.
    """
    # No soft fallback: a soft lock is a file's mere existence, which a killed holder would leave behind.
    lock = FileLock(path, fallback_to_soft=False, preserve_lock_file=True)
    holder = path.with_name(f"{path.name}.pid")  # a file of its own: Windows lets nobody read a locked one
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if on_wait is not None:
            on_wait(_shown(holder))
        lock.acquire()
    try:
        with suppress(OSError):  # a full disk has no room for a number either
            holder.write_text(f"{os.getpid()}\n", encoding="ascii")
        yield
    finally:
        with suppress(OSError):
            holder.unlink()
        lock.release()


def _shown(holder: Path) -> str:
    """Return the holder's pid as ` (pid 1234)`; "" if it is not written within READ_SECONDS."""
    deadline = time.monotonic() + READ_SECONDS
    while True:
        with suppress(OSError, UnicodeDecodeError):
            text = holder.read_text(encoding="ascii").strip()
            if text.isdecimal():
                return f" (pid {text})"
        if time.monotonic() > deadline:
            return ""
        time.sleep(READ_SECONDS / 20)
