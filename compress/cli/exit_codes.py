"""How the command line ends: an expected error is one sentence and its exit code, a bug is one line and exit 1."""

from __future__ import annotations

import errno
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType

import click

from compress.core.console import say
from compress.core.errors import CompressError, Interrupted, StageError, UsageError
from compress.core.files import write_atomically

FULL, CLOSED = (errno.ENOSPC, errno.EDQUOT), (errno.EROFS, errno.EACCES, errno.EPERM)  # a disk, and a folder or file
RESUMABLE = ("run", "teachers")


def said_by_another(error: BaseException) -> bool:
    """Whether torchrun started this process beside a first one, which says the same."""
    return os.environ.get("RANK", "0") != "0" and "WORLD_SIZE" in os.environ and not isinstance(error, StageError)


def hand_to_torchrun(message: str) -> None:
    """The sentence for torchrun's own account of its processes, which ends with the first that failed; without it, it says how to get tracebacks."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        told = {"message": {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}}
        with suppress(OSError):  # whole or not at all: a part of it would end torchrun itself
            write_atomically(Path(path), json.dumps(told).encode())


def explain(error: BaseException, arguments: Sequence[str]) -> tuple[int, str]:
    """Exit code and sentence of an expected error; any other is raised again."""
    command = shlex.join(["compress", *arguments])
    again = "run the same command again to resume"
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return Interrupted.exit_code, f"interrupted; {again}: {command}" if set(arguments[:1]) & set(
            RESUMABLE
        ) else "interrupted"
    if isinstance(error, Interrupted):
        message = str(error)
        return error.exit_code, f"{message}: {command}" if message.endswith(again) else message
    if isinstance(error, CompressError):
        return error.exit_code, str(error)
    if isinstance(error, click.ClickException):
        where = f" (see: {error.ctx.command_path} --help)" if isinstance(error, click.UsageError) and error.ctx else ""
        return UsageError.exit_code, error.format_message().rstrip(".") + where
    if isinstance(error, BrokenPipeError):  # `compress --help | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0, ""
    if isinstance(error, OSError) and error.errno in (*FULL, *CLOSED):
        return StageError.exit_code, _of_disk(error)
    if type(error).__name__ == "OutOfMemoryError":  # torch's; torch is not imported for it
        return (
            StageError.exit_code,
            "the device's memory is full; lower train.batch_size, or choose another device with --device",
        )
    raise error


def _of_disk(error: OSError) -> str:
    """The sentence of a disk that is full, or of a file that this user may not write, or not even read."""
    name = error.filename or "a file"
    if error.errno in FULL:
        return f"{name}: {error.strerror}; make room or choose another place with --artifacts"
    if error.filename and os.path.exists(error.filename) and not os.access(error.filename, os.R_OK):
        return f"{name}: cannot be read ({error.strerror})"
    return f"{name}: cannot be written ({error.strerror}); choose another place with --artifacts"


def one_line(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """A bug in one line; Python ends with exit code 1."""
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    place = f" ({Path(traceback.tb_frame.f_code.co_filename).name}:{traceback.tb_lineno})" if traceback else ""
    words = " ".join(str(error).split())
    message = f"bug: {kind.__name__}: {words}{place}; add --traceback to see the rest"
    hand_to_torchrun(message)
    say(message, sys.stderr)


def as_interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
