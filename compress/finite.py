"""Notices a loss that is not finite, without stopping the device at every step."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from compress.errors import StageError


class Finite:
    """Latches the first step whose losses are not finite."""

    def __init__(self, device: str) -> None:
        self.step = torch.full((), -1, dtype=torch.int64, device=device)
        self.losses: dict[str, Tensor] = {}

    def note(self, losses: dict[str, Tensor], step: int) -> None:
        """Look at a step's losses; stays on the device."""
        broken = (~torch.stack([torch.isfinite(loss.detach()) for loss in losses.values()])).any() & (self.step < 0)
        self.step = torch.where(broken, torch.full_like(self.step, step), self.step)
        for name, loss in losses.items():
            self.losses[name] = torch.where(broken | (self.step < 0), loss.detach(), self.losses.get(name, loss.detach()))

    def bad(self) -> bool:
        """Whether any step was not finite; waits for the device."""
        return int(self.step) >= 0

    def check(self, epoch: int, folder: Path) -> None:
        """Raises StageError that names the first such step and its losses."""
        if self.bad():
            values = ", ".join(f"{name} {float(loss):.4g}" for name, loss in self.losses.items())
            kept = "the last good checkpoint is kept" if (folder / "checkpoint.pt").is_file() else "there is no checkpoint yet"
            raise StageError(
                f"the loss is not finite in epoch {epoch}, step {int(self.step) + 1} ({values}); {kept}: lower train.lr or the loss's weight"
            )
