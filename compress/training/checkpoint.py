"""Training checkpoints: everything that a killed run needs to go on and end with the same bits."""

from __future__ import annotations

import csv
import io
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.core.errors import StageError
from compress.core.files import write_atomically

HISTORY = "history.csv"


@dataclass
class State:
    """Where training stands: `step` steps of 1-based `epoch` are done. `sums` are the epoch's losses so far, times pictures."""

    epoch: int = 1
    step: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Any] | None = None


def save(
    path: Path, student: nn.Module, method: nn.Module, optimizer: torch.optim.Optimizer, state: State, precision: str
) -> None:
    """Write networks, optimizer, position and the random states of the CPU and of the student's card, atomically."""
    device = next(student.parameters()).device
    content = {
        "student": student.state_dict(),
        "method": method.state_dict(),
        "optimizer": optimizer.state_dict(),
        "state": vars(state),
        "rng": torch.get_rng_state(),
        "rng_cuda": [torch.cuda.get_rng_state(device)] if device.type == "cuda" else [],
        "precision": precision,
        "threads": torch.get_num_threads(),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())


def load(
    content: bytes, path: Path, student: nn.Module, method: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[State, str]:
    """Restore a checkpoint's bytes -> (state, precision); `path`: for messages. Thread count and precision of the first part are kept, since both change bits.

    Raises StageError where the file is damaged or of another network.
    """
    try:
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        student.load_state_dict(found["student"])
        method.load_state_dict(found["method"])
        optimizer.load_state_dict(found["optimizer"])
        torch.set_rng_state(found["rng"])
        device, states = next(student.parameters()).device, found["rng_cuda"]
        if states and device.type == "cuda":  # an older checkpoint holds those of all cards that its machine had
            torch.cuda.set_rng_state(states[min(device.index, len(states) - 1)], device)
        torch.set_num_threads(found["threads"])
        return State(**found["state"]), found["precision"]
    except (OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise StageError(
            f"{path} cannot be resumed from ({reason}); start this training again: rm -r {path.parent}"
        ) from error


def write_history(path: Path, history: list[dict[str, float]]) -> None:
    """history.csv: one row an epoch."""
    buffer = io.StringIO()
    names = list(
        dict.fromkeys(name for row in history for name in row)
    )  # a method's later stage may have a column more
    writer = csv.DictWriter(buffer, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_atomically(path, buffer.getvalue().encode())
