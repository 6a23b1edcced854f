"""Training checkpoints: everything a killed run needs to resume and end with the same bits."""

from __future__ import annotations

import csv
import io
import pickle
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.core.distributed import Group
from compress.core.errors import StageError
from compress.core.files import write_atomically
from compress.core.records.base import CHECKPOINT

HISTORY = "history.csv"


@dataclass
class State:
    """How far training has come: `step` steps of the 1-based `epoch` are done.

    Attributes:
        seconds: training time so far, over all runs.
        sums: the current epoch's losses so far, each times its number of images.
        history: one row per finished epoch.
        best: `train.metric` (as top1), epoch and weights of the best epoch so far, under `train.keep: best`.
        average: the moving average of the parameters, under `train.ema`.
    """

    epoch: int = 1
    step: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    average: list[Tensor] | None = None


class Checkpointer:
    """One training's checkpoint file: rank 0 reads and writes it, every rank restores from it.

    Attributes:
        exists: whether there is a checkpoint to resume from.
        saved_at: `time.monotonic()` of the last save.
        precision: the arithmetic that the checkpoint was trained in; a resumed run keeps it.
    """

    def __init__(
        self, folder: Path, student: nn.Module, method: nn.Module, optimizer: torch.optim.Optimizer, group: Group
    ) -> None:
        self.path, self.student, self.method, self.optimizer, self.group = (
            folder / CHECKPOINT,
            student,
            method,
            optimizer,
            group,
        )
        self.exists, self.saved_at, self.precision = False, time.monotonic(), ""

    def restore(self, precision: str) -> State | None:
        """Load rank 0's checkpoint on every rank; None where there is none, and `precision` is then the training's."""
        content = self.group.broadcast(self.path.read_bytes() if self.group.is_main and self.path.is_file() else None)
        self.exists, self.precision = content is not None, precision
        if content is None:
            return None
        state, self.precision = load(content, self.path, self.student, self.method, self.optimizer)
        return state

    def save(self, state: State) -> None:
        """Write the checkpoint on rank 0."""
        if self.group.is_main:
            save(self.path, self.student, self.method, self.optimizer, state, self.precision)
        self.saved_at, self.exists = time.monotonic(), True


def save(
    path: Path, student: nn.Module, method: nn.Module, optimizer: torch.optim.Optimizer, state: State, precision: str
) -> None:
    """Write networks, optimizer, state and the random states of the CPU and the student's GPU, atomically.

    Args:
        path: the file to write.
        student: the network that trains.
        method: its own modules train with the student.
        optimizer: of both.
        state: how far training has come.
        precision: "float32" or "bf16".
    """
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
    """Restore a checkpoint, including its thread count, which changes bits as its precision does.

    Args:
        content: the checkpoint file's bytes.
        path: where they came from, for messages.
        student: gets the checkpoint's weights.
        method: gets the checkpoint's weights and buffers.
        optimizer: gets the checkpoint's momentum.

    Returns:
        The state, and the precision that training started in.

    Raises:
        StageError: the file is damaged, or belongs to another network.
    """
    try:
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        student.load_state_dict(found["student"])
        method.load_state_dict(found["method"])
        optimizer.load_state_dict(found["optimizer"])
        torch.set_rng_state(found["rng"])
        device, states = next(student.parameters()).device, found["rng_cuda"]
        # An older checkpoint holds the states of all GPUs of its machine.
        if states and device.type == "cuda":
            torch.cuda.set_rng_state(states[min(device.index, len(states) - 1)], device)
        torch.set_num_threads(found["threads"])
        return State(**found["state"]), found["precision"]
    except (OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise StageError(
            f"{path} cannot be resumed from ({reason}); start this training again: rm -r {path.parent}"
        ) from error


def write_history(path: Path, history: list[dict[str, float]]) -> None:
    """Write history.csv: one row per epoch."""
    buffer = io.StringIO()
    # A later stage of a method may add a column.
    names = list(dict.fromkeys(name for row in history for name in row))
    writer = csv.DictWriter(buffer, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_atomically(path, buffer.getvalue().encode())
