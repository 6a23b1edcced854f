"""Files that are replaced in one step: a reader never sees half of one, and a full disk does not cost the old one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: bytes) -> None:
    """Write through a temporary file and a rename."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """`write_atomically` of JSON, one value a line."""
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
