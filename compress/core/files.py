"""Files that are replaced in one step.

A reader never sees half a file, and a full disk does not cost the old one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write into, which replaces `path` when the block ends and is removed when the block fails.

    Its name is always the same, so that what a killed process left is overwritten. Two processes that write the same
    `path` must therefore hold a lock.
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
    """Write `path` through a temporary file and a rename; see `replacing`."""
    with replacing(path) as stream:
        stream.write(content)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON atomically, one value a line."""
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
