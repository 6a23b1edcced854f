"""Carry unfinished trainings to another machine: a few small files in, the cache's files out.

A machine that is lent for minutes may give back eight files of 16 MiB at most. `pack` writes what trainings need to go
on as one compressed archive, cut into pieces; a record beside them names each piece with its sha256. The record is
replaced last, so whoever reads while it is written finds the earlier state whole.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

from compress.core.errors import UsageError
from compress.core.files import write_atomically, write_json

RECORD = "state.json"
PIECE, PIECES = 16 * 2**20, 4  # four of eight files: all of them together may hold 64 MiB, and the record needs room
LIMIT = PIECE * PIECES - 2**20


def pack(record: dict[str, Any], root: Path, files: list[Path], folder: Path) -> list[str]:
    """Write the record and the files under `root` into `folder`; return the files that found no room, largest first.

    Files are left out from the end of the list, so the dearest stand first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept, left = list(files), []
    while len(content := _archive(root, kept)) > LIMIT:
        left.append(str(kept.pop().relative_to(root)))
    generation = hashlib.sha256(content).hexdigest()
    pieces = {}
    for number, start in enumerate(range(0, len(content), PIECE)):
        name, part = f"state-{generation[:8]}-{number}.part", content[start : start + PIECE]
        write_atomically(folder / name, part)
        pieces[name] = hashlib.sha256(part).hexdigest()
    write_json(folder / RECORD, {**record, "pieces": pieces})
    for old in folder.glob("state-*.part"):
        if old.name not in pieces:
            old.unlink()
    return left


def read(folder: Path) -> dict[str, Any] | None:
    """Return the record of a folder; None where there is none. Raises UsageError where it is damaged."""
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        return record if record["steps"] is not None else None
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a state of on_gpu.py ({error}); remove it to begin anew") from error


def unpack(record: dict[str, Any], folder: Path, root: Path) -> None:
    """Write the packed files under `root`. Raises UsageError where a piece is missing or is not what was written."""
    content = b""
    for name, digest in record["pieces"].items():
        path = folder / name
        part = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(part).hexdigest() != digest:
            raise UsageError(f"{path} is missing or damaged; bring all files of the state, or remove {folder / RECORD}")
        content += part
    root.mkdir(parents=True, exist_ok=True)
    if content:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            archive.extractall(root, filter="data")


def _archive(root: Path, files: list[Path]) -> bytes:
    """Compress files; one that a training replaces or ends meanwhile is read as it is at this moment, or left out."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        for path in files:
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                continue
            info = tarfile.TarInfo(str(path.relative_to(root)))
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def json_of(path: Path) -> dict[str, Any]:
    """Read a result file."""
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def needed(root: Path, spent: set[str]) -> list[Path]:
    """List what trainings under `root` need to go on, the dearest first.

    These are what is small and says what happened, teachers that were trained here, students that are done, and
    checkpoints, small ones first. `spent` names the students whose result is known.
    """
    cache = root / "cache"
    said = sorted([*root.glob("*-candidates.json"), *root.glob("*.log")])
    done = [path.parent for path in sorted(cache.glob("teacher/*/stage.json")) if json_of(path)["result"]["epochs"]]
    done += [path.parent for path in sorted(cache.glob("distill/*/stage.json")) if path.parent.name not in spent]
    going = [(path.stat().st_size, path.parent) for path in cache.glob("*/*.partial/checkpoint.pt") if path.is_file()]
    return said + [path for folder in [*done, *(folder for _, folder in sorted(going))] for path in _files(folder)]


def _files(folder: Path) -> list[Path]:
    """List a stage's files; none where its training has just ended and the folder has its final name."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_file() and path.suffix != ".tmp")
    except FileNotFoundError:
        return []
