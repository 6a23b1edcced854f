"""The pointer to a recipe's newest finished run: the link `latest`, or `latest.txt` where links cannot be made."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from compress.core.files import write_atomically

LINK, TEXT = "latest", "latest.txt"


def mark_latest(run: Path) -> None:
    """Let the pointer beside a run's folder name this run, in one step.

    Windows allows links to some users only; there the folder's name is written to `latest.txt`.
    """
    link, text, temporary = (run.parent / name for name in (LINK, TEXT, ".latest.tmp"))
    try:
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(run.name, target_is_directory=True)
        os.replace(temporary, link)
    except (OSError, NotImplementedError):
        write_atomically(text, f"{run.name}\n".encode())
        with suppress(OSError):
            link.unlink()
    else:
        text.unlink(missing_ok=True)


def latest_run(runs: Path) -> Path | None:
    """Return the newest finished run among a recipe's `runs`, the folder itself; None where there is none."""
    text = runs / TEXT  # newer than a link, which takes it away
    with suppress(OSError, UnicodeDecodeError):
        named = runs / text.read_text(encoding="utf-8").strip()
        return named.resolve() if named != runs and named.is_dir() else None
    link = runs / LINK
    return link.resolve() if link.is_dir() else None
