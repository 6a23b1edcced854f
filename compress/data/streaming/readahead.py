"""Files read from start to end before their pictures are asked for: these then come from the system's memory. Torch-free."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

PART = 4 * 2**20  # bytes of one read


class ReadAhead:
    """A thread that reads `paths` in their order, as far as it is told.

    The system keeps what was read in memory that nobody else needs: this takes none away, and is of no use where there is none. What cannot be read is left
    to whoever asks for its pictures.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths, self.files_read = paths, 0
        self._first, self._end, self._ended, self._changed = 0, 0, False, threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)

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
        """From now on the files from `first` to before `end` are of use; `first` never falls."""
        with self._changed:
            self._first, self._end = first, min(end, len(self.paths))
            self._changed.notify()

    def _read(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or max(self.files_read, self._first) < self._end)
                if self._ended:
                    return
                self.files_read = max(self.files_read, self._first)  # what training has left behind is skipped
            self._through(self.paths[self.files_read])
            self.files_read += 1

    def _through(self, path: Path) -> None:
        part = bytearray(PART)
        with suppress(OSError), path.open("rb", buffering=0) as stream:
            while not self._ended and stream.readinto(part):
                pass
