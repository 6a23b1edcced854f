"""Checkpoint files: read without running code. A file may hold several state dicts, each under a name."""

from __future__ import annotations

import argparse
import pickle
import re
import shlex
import struct
import warnings
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from compress.core.errors import MissingError, StageError, UsageError

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".tar")
WRAPPERS = ("state_dict", "model", "model_state", "net", "weights")  # where training scripts put the state dict
MAX_DEPTH = 4  # of dicts in dicts that are searched for a state dict
MAX_KEYS_SHOWN = 4  # in a message
# What training scripts save beside the weights and what runs no code: their arguments, and numbers of numpy.
ALLOWED_CLASSES: tuple[Any, ...] = (
    argparse.Namespace,
    np.dtype,
    *{type(np.dtype(kind)) for kind in "?bhilqBHILQefd"},
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),  # as numpy 1 named it
)
# What torch.load raises on damaged bytes, found by changing bytes at random.
DAMAGED_FILE_ERRORS = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    struct.error,
)


@dataclass(frozen=True)
class CheckpointContent:
    """What a checkpoint file holds.

    Attributes:
        states: Every state dict by where it stands: "" for the file itself, "state_dict_ema", "ema.module".
        unread: Names of top-level entries without a state dict that hold something.
    """

    states: dict[str, dict[str, Tensor]]
    unread: tuple[str, ...] = ()

    @property
    def default(self) -> str | None:
        """The name under which training scripts put the weights; None if there is none."""
        place = ""
        while True:
            inner = [f"{place}.{wrapper}".lstrip(".") for wrapper in WRAPPERS]
            found = next((one for one in inner if any(f"{name}.".startswith(f"{one}.") for name in self.states)), None)
            if found is None:
                return place if place in self.states else None
            place = found


def read_content(path: Path) -> CheckpointContent:
    """Read every state dict of a .safetensors, .pt, .pth, .bin, .ckpt or .tar (`.pth.tar`) file; tensors on the CPU.

    Raises:
        MissingError: There is no such file.
        UsageError: The file has another ending, or is a pickle that contains code.
        StageError: The file is damaged or holds no state dict.
    """
    if not path.is_file():
        raise MissingError(
            f"weights: there is no file {path}; check the path, or copy the checkpoint there: cp CHECKPOINT {path}"
        )
    if path.suffix == ".safetensors":
        try:
            return CheckpointContent({"": safetensors.torch.load_file(path)})
        except safetensors.SafetensorError as error:
            raise StageError(f"weights: {path} is not a complete safetensors file ({error}); fetch it again") from error
    if path.suffix not in PICKLES:
        known = ".safetensors, .pt, .pth, .bin, .ckpt or .pth.tar"
        raise UsageError(f"weights: {path} ends in {path.suffix!r}; give a {known} file")
    loaded = _read_pickle(path)
    states = _state_dicts(loaded, "", MAX_DEPTH)
    if states:
        assert isinstance(loaded, dict)
        used = {name.split(".")[0] for name in states}
        other = [str(key) for key, value in loaded.items() if value is not None and str(key) not in used]
        return CheckpointContent(states, () if "" in states and len(states) == 1 else tuple(other))
    if isinstance(loaded, dict):
        raise StageError(
            f"weights: {path} has the keys {some([str(key) for key in loaded])} and no state dict under "
            f"{', '.join(WRAPPERS)}; save the state dict alone"
        )
    raise StageError(f"weights: {path} holds a {type(loaded).__name__}, not a state dict; save `model.state_dict()`")


def _state_dicts(value: object, name: str, depth: int) -> dict[str, dict[str, Tensor]]:
    """Find every dict that holds tensors, by its path of keys joined by dots. Single numbers are no weights."""
    if not isinstance(value, dict) or depth == 0:
        return {}
    tensors = {str(key): item for key, item in value.items() if isinstance(item, Tensor)}
    found = {name: tensors} if any(tensor.ndim for tensor in tensors.values()) else {}
    for key, item in value.items():
        found |= _state_dicts(item, f"{name}.{key}".lstrip("."), depth - 1)
    return found


def _read_pickle(path: Path) -> object:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(ALLOWED_CLASSES)):
            warnings.simplefilter("ignore")  # of other pickle protocols, which are read or refused
            # Mapped into memory: only what is taken is read.
            return torch.load(path, weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named is None:
            raise _unreadable(path, "its pickle is damaged or was not written by torch.save") from error
        raise UsageError(
            f"weights: {path} contains code ({named[1]}), which is not run; if you trust its origin, take the tensors "
            f"out of it with: python -m compress.models.trusted_checkpoint {shlex.quote(str(path))}"
        ) from error
    except DAMAGED_FILE_ERRORS as error:
        raise _unreadable(path, f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".: ")) from error


def _unreadable(path: Path, reason: str) -> StageError:
    return StageError(
        f"weights: {path} could not be read as a PyTorch checkpoint ({reason}); fetch it again, or save its state dict"
    )


def as_float32(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with half precision as float32."""
    return {
        key: tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
        for key, tensor in state.items()
    }


def some(items: Iterable[str]) -> str:
    """Join the first items for a message, and count the others."""
    listed = list(items)
    more = len(listed) - MAX_KEYS_SHOWN
    return ", ".join(listed[:MAX_KEYS_SHOWN]) + (f" and {more} more" if more > 0 else "")
