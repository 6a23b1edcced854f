"""Run a model on the device with numpy, onnxruntime and the standard library, nothing else.

An application starts with `from export.runtime import Model`. `Model` and the names beside it load onnxruntime on first
use; the rest of this package is importable without it. The package travels in the bundle and runs on Python 3.8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from export.runtime.contract import (
    FOREIGN,
    INPUT,
    METADATA_PREFIX,
    OUTPUT,
    Contract,
    ExportError,
    UnavailableError,
    copy_model,
    normalize,
    read_sidecar,
    resize_matrix,
    scale_and_shift,
    write_sidecar,
)
from export.runtime.machine import TARGETS, cores, host, isa, runs_on, saturates

if TYPE_CHECKING:
    from export.runtime.model import CPU, SESSION_ERRORS, Model, session_options

__all__ = [
    "CPU",
    "FOREIGN",
    "INPUT",
    "METADATA_PREFIX",
    "OUTPUT",
    "SESSION_ERRORS",
    "TARGETS",
    "Contract",
    "ExportError",
    "Model",
    "UnavailableError",
    "copy_model",
    "cores",
    "host",
    "isa",
    "normalize",
    "read_sidecar",
    "resize_matrix",
    "runs_on",
    "saturates",
    "scale_and_shift",
    "session_options",
    "write_sidecar",
]


def __getattr__(name: str) -> Any:
    """Load onnxruntime with the first of the names that need it."""
    if name not in ("CPU", "SESSION_ERRORS", "Model", "session_options"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from export.runtime import model

    return getattr(model, name)
