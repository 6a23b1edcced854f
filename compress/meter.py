"""An epoch's losses: summed, and looked at for one that is not finite, without stopping the device at every step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from compress.errors import StageError


class Meter:
    """Losses of one process's steps. A step costs one launch; numbers are read, which waits for the device, when they are asked for.

    Sums are added in double precision, one step after another.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._steps: list[tuple[int, tuple[tuple[str, float], ...], Tensor]] = []  # not read yet
        self._broken: tuple[int, str] | None = None  # the first step with a loss that is not finite, and its losses in words

    def note(self, losses: Mapping[str, Tensor], weights: Mapping[str, float], step: int) -> None:
        """A step's losses, scalars on one device, and how often each counts in the sum."""
        self._steps.append((step, tuple((name, weights[name]) for name in losses), torch.stack([loss.detach() for loss in losses.values()])))

    def sums(self) -> dict[str, float]:
        """By name, each loss times its weight."""
        if self._steps:
            values = iter(torch.cat([values for *_, values in self._steps]).tolist())
            for step, names, _ in self._steps:
                self._add(step, [(name, weight, next(values)) for name, weight in names])
            self._steps = []
        return self._sums

    def _add(self, step: int, losses: list[tuple[str, float, float]]) -> None:
        for name, weight, value in losses:
            self._sums[name] = self._sums.get(name, 0.0) + value * weight
        if self._broken is None and not all(math.isfinite(value) for *_, value in losses):
            self._broken = step, ", ".join(f"{name} {value:.4g}" for name, _, value in losses)

    def bad(self) -> bool:
        """Whether a loss of any step was not finite."""
        self.sums()
        return self._broken is not None

    def check(self, epoch: int, folder: Path) -> None:
        """Raises StageError that names the first such step and its losses."""
        if self.bad() and self._broken is not None:
            step, values = self._broken
            kept = "the last good checkpoint is kept" if (folder / "checkpoint.pt").is_file() else "there is no checkpoint yet"
            raise StageError(f"the loss is not finite in epoch {epoch}, step {step + 1} ({values}); {kept}: lower train.lr or the loss's weight")
