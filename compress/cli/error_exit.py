"""Ends the command line: an expected error is one sentence and its exit code, a bug is one line and exit 1."""

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

from compress.core.console import print_line
from compress.core.errors import CompressError, Interrupted, StageError, UsageError
from compress.core.files import write_atomically

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_ALLOWED = (errno.EROFS, errno.EACCES, errno.EPERM)
RESUMABLE = ("run", "teachers")


def reported_by_main_rank(error: BaseException) -> bool:
    """Return whether this is another process of torchrun than rank 0, which reports the same error."""
    return os.environ.get("RANK", "0") != "0" and "WORLD_SIZE" in os.environ and not isinstance(error, StageError)


def hand_to_torchrun(message: str) -> None:
    """Write the sentence where torchrun reads it for its own report on the process that failed first."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        content = {"message": {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}}
        with suppress(OSError):  # torchrun itself ends at a file that is only partly written
            write_atomically(Path(path), json.dumps(content).encode())


def explain(error: BaseException, arguments: Sequence[str]) -> tuple[int, str]:
    """Return the exit code and the sentence of an expected error; raise any other one again."""
    command = shlex.join(["compress", *arguments])
    again = "run the same command again to resume"
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        resumable = arguments[:1] and arguments[0] in RESUMABLE
        return Interrupted.exit_code, f"interrupted; {again}: {command}" if resumable else "interrupted"
    if isinstance(error, Interrupted):
        message = str(error)
        return error.exit_code, f"{message}: {command}" if message.endswith(again) else message
    if isinstance(error, CompressError):
        return error.exit_code, str(error)
    if isinstance(error, click.ClickException):
        where = f" (see: {error.ctx.command_path} --help)" if isinstance(error, click.UsageError) and error.ctx else ""
        return UsageError.exit_code, error.format_message().rstrip(".") + where
    if isinstance(error, BrokenPipeError):  # such as `compress --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0, ""
    if isinstance(error, OSError) and error.errno in (*DISK_FULL, *NOT_ALLOWED):
        return StageError.exit_code, _of_disk(error)
    if type(error).__name__ == "OutOfMemoryError":  # compared by name, so that torch is not imported
        return (
            StageError.exit_code,
            "the device's memory is full; lower train.batch_size, or choose another device with --device",
        )
    raise error


def _of_disk(error: OSError) -> str:
    """Describe a disk that is full, or a file that this user may not read or write."""
    name = error.filename or "a file"
    if error.errno in DISK_FULL:
        return f"{name}: {error.strerror}; make room or choose another place with --artifacts"
    if error.filename and os.path.exists(error.filename) and not os.access(error.filename, os.R_OK):
        return f"{name}: cannot be read ({error.strerror})"
    return f"{name}: cannot be written ({error.strerror}); choose another place with --artifacts"


def one_line(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Print a bug in one line; Python then ends with exit code 1."""
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    place = f" ({Path(traceback.tb_frame.f_code.co_filename).name}:{traceback.tb_lineno})" if traceback else ""
    words = " ".join(str(error).split())
    message = f"bug: {kind.__name__}: {words}{place}; add --traceback to see the rest"
    hand_to_torchrun(message)
    print_line(message, sys.stderr)


def as_interrupt(number: int, frame: FrameType | None) -> None:
    """Handle a signal as Ctrl-C. Raises KeyboardInterrupt."""
    raise KeyboardInterrupt
