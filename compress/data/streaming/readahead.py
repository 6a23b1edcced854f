"""A thread that reads files from start to end before their images are needed, so that these come from memory."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

READ_BYTES = 4 * 2**20


class ReadAhead:
    """A context in which a thread reads `paths` in order, within the window set by `set_window`.

    The operating system keeps what was read in its page cache, as long as nobody else needs the memory. A file that
    cannot be read is skipped: whoever decodes its images reports it.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths, self.files_read = paths, 0
        self._first, self._end, self._ended, self._changed = 0, 0, False, threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> ReadAhead:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join()

    def set_window(self, first: int, end: int) -> None:
        """Let the thread read the files from `first` to before `end` from now on; `first` must never decrease."""
        with self._changed:
            self._first, self._end = first, min(end, len(self.paths))
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or max(self.files_read, self._first) < self._end)
                if self._ended:
                    return
                # Files that training has already passed are skipped.
                self.files_read = max(self.files_read, self._first)
            self._read_whole(self.paths[self.files_read])
            self.files_read += 1

    def _read_whole(self, path: Path) -> None:
        buffer = bytearray(READ_BYTES)
        with suppress(OSError), path.open("rb", buffering=0) as stream:
            while not self._ended and stream.readinto(buffer):
                pass
