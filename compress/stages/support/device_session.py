"""Send a bundle to a device and return its answer; failures become the errors of this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compress.core.console import Console
from compress.core.errors import MissingError, StageError, UsageError
from export.targets import DeviceFailed, Unreachable, VerifySettings, WrongTarget, dispatch, parse


def ask(
    target: str,
    bundle: Path,
    work: Path,
    settings: VerifySettings,
    *,
    limit_seconds: float | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Let a device verify a bundle.

    Args:
        target: The device, as in `device.target`.
        bundle: The bundle's zip file.
        work: A folder for what passes between the machines.
        settings: Threads, repeats and the like.
        limit_seconds: When to give up; None: the target's own limit.
        console: Where progress is printed.

    Returns:
        The device's answer, the JSON of `export.verify`.

    Raises:
        UsageError: The target is none.
        MissingError: The device is out of reach or has no interpreter.
        StageError: The device failed.
    """
    log = console.line if console else lambda text: None
    try:
        return dispatch.verify(bundle, parse(target), work, settings, limit_seconds=limit_seconds, log=log)
    except WrongTarget as error:
        raise UsageError(str(error)) from error
    except Unreachable as error:
        raise MissingError(str(error)) from error
    except DeviceFailed as error:
        raise StageError(f"device local: {error}" if target.startswith("local") else str(error)) from error
