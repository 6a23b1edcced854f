"""Verify a bundle on a device, and raise a target's errors as those of this package."""

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
    """A device's answer for a bundle (zip). Raises UsageError, MissingError (out of reach, no interpreter) or StageError (it failed)."""
    tell = console.line if console else lambda text: None
    try:
        return dispatch.verify(bundle, parse(target), work, settings, limit_seconds=limit_seconds, log=tell)
    except WrongTarget as error:
        raise UsageError(str(error)) from error
    except Unreachable as error:
        raise MissingError(str(error)) from error
    except DeviceFailed as error:
        raise StageError(f"device local: {error}" if target.startswith("local") else str(error)) from error
