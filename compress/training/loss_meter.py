"""An epoch's losses: summed, and checked for values that are not finite, without stopping the device at every step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from compress.core.errors import StageError


def finite(parameters: Iterable[Tensor]) -> bool:
    """Return whether every weight is finite; waits for the device."""
    largest = torch._foreach_norm([parameter.detach() for parameter in parameters if parameter.numel()], float("inf"))
    return not largest or bool(torch.stack([value.isfinite() for value in largest]).all())


class LossMeter:
    """Collects the losses of one rank's steps, and reads them from the device only when their sums are asked for.

    A step costs one launch. Sums are added in double precision, one step after another.

    Args:
        parameters: what the steps move. A loss belongs to the weights before its step, so what the last step did can
            be seen in the weights alone.
        epoch: 1-based, for messages.
    """

    def __init__(self, parameters: Sequence[Tensor], epoch: int) -> None:
        self.parameters, self.epoch = parameters, epoch
        self._sums: dict[str, float] = {}
        # Steps whose losses have not been read yet: number, names with weights, values on the device.
        self._unread: list[tuple[int, tuple[tuple[str, float], ...], Tensor]] = []
        # The first step with a loss that is not finite, and a description of its losses.
        self._nonfinite: tuple[int, str] | None = None

    def add(self, losses: Mapping[str, Tensor], weights: Mapping[str, float], step: int) -> None:
        """Add a step's losses.

        Args:
            losses: scalars on one device, by name.
            weights: how often each counts in the sum.
            step: counted from 0 in the epoch.
        """
        names = tuple((name, weights[name]) for name in losses)
        self._unread.append((step, names, torch.stack([loss.detach() for loss in losses.values()])))

    def sums(self) -> dict[str, float]:
        """Return the sum of each loss times its weight, by name; waits for the device."""
        if self._unread:
            values = iter(torch.cat([values for *_, values in self._unread]).tolist())
            for step, names, _ in self._unread:
                self._add(step, [(name, weight, next(values)) for name, weight in names])
            self._unread = []
        return self._sums

    def _add(self, step: int, losses: list[tuple[str, float, float]]) -> None:
        for name, weight, value in losses:
            self._sums[name] = self._sums.get(name, 0.0) + value * weight
        if self._nonfinite is None and not all(math.isfinite(value) for *_, value in losses):
            self._nonfinite = step, ", ".join(f"{name} {value:.4g}" for name, _, value in losses)

    def describe_nonfinite(self) -> str | None:
        """Return what is not finite, a step's loss or a weight, or None; waits for the device."""
        self.sums()
        if self._nonfinite is not None:
            step, values = self._nonfinite
            return f"the loss is not finite in epoch {self.epoch}, step {step + 1} ({values})"
        if finite(self.parameters):
            return None
        return f"the weights are not finite in epoch {self.epoch}, though every loss until then was"

    def raise_if_nonfinite(self, *, kept: bool) -> None:
        """Raise StageError if a loss or a weight is not finite. `kept`: whether there is a checkpoint."""
        if (what := self.describe_nonfinite()) is not None:
            there = "the last good checkpoint is kept" if kept else "there is no checkpoint yet"
            raise StageError(f"{what}; {there}: lower train.lr or the loss's weight")
