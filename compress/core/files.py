"""Files that are replaced in one step: a reader never sees half of one, and a full disk does not cost the old one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write into, which takes the place of `path` when it is whole; where it does not become so, it is removed.

    Its name is always the same, so that one that a killed process left is written over: two processes write the same `path` under a lock alone.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as stream:
            yield stream
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Write through a temporary file and a rename; see `replacing`."""
    with replacing(path) as stream:
        stream.write(content)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """`write_atomically` of JSON, one value a line."""
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
