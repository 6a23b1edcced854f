"""Files read from start to end before their pictures are asked for: these then come from the system's memory. Torch-free."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

PART = 4 * 2**20  # bytes of one read


class ReadAhead:
    """A thread that reads `paths` in their order, from the `done`-th on and as far as it is told.

    The system keeps what was read in memory that nobody else needs: this takes none away, and is of no use where there is none. What cannot be read is left
    to whoever asks for its pictures.
    """

    def __init__(self, paths: Sequence[Path], done: int = 0) -> None:
        self.paths, self.done = paths, done
        self._wanted, self._ended, self._changed = 0, False, threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> ReadAhead:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join()

    def want(self, count: int) -> None:
        """From now on the first `count` files may be read."""
        with self._changed:
            self._wanted = min(count, len(self.paths))
            self._changed.notify()

    def _read(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or self.done < self._wanted)
                if self._ended:
                    return
            self._through(self.paths[self.done])
            self.done += 1

    def _through(self, path: Path) -> None:
        part = bytearray(PART)
        with suppress(OSError), path.open("rb", buffering=0) as stream:
            while not self._ended and stream.readinto(part):
                pass
