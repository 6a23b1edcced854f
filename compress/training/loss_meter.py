"""An epoch's losses: summed, and looked at for one that is not finite, without stopping the device at every step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from compress.core.errors import StageError


def finite(parameters: Iterable[Tensor]) -> bool:
    """Whether every weight is a number; waits for the device."""
    largest = torch._foreach_norm([parameter.detach() for parameter in parameters if parameter.numel()], float("inf"))
    return not largest or bool(torch.stack([value.isfinite() for value in largest]).all())


class LossMeter:
    """Losses of one process's steps. A step costs one launch; numbers are read, which waits for the device, when they are asked for.

    Sums are added in double precision, one step after another. `parameters`: what the steps move; a loss is that of the weights before its step, so
    what the last step did is seen in the weights alone. `epoch`: 1-based.
    """

    def __init__(self, parameters: Sequence[Tensor], epoch: int) -> None:
        self.parameters, self.epoch = parameters, epoch
        self._sums: dict[str, float] = {}
        self._steps: list[tuple[int, tuple[tuple[str, float], ...], Tensor]] = []  # not read yet
        self._broken: tuple[int, str] | None = (
            None  # the first step with a loss that is not finite, and its losses in words
        )

    def add(self, losses: Mapping[str, Tensor], weights: Mapping[str, float], step: int) -> None:
        """A step's losses, scalars on one device, and how often each counts in the sum."""
        self._steps.append(
            (
                step,
                tuple((name, weights[name]) for name in losses),
                torch.stack([loss.detach() for loss in losses.values()]),
            )
        )

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

    def describe_nonfinite(self) -> str | None:
        """What is not finite, the loss of a step or a weight; None: nothing."""
        self.sums()
        if self._broken is not None:
            step, values = self._broken
            return f"the loss is not finite in epoch {self.epoch}, step {step + 1} ({values})"
        return (
            None
            if finite(self.parameters)
            else f"the weights are not finite in epoch {self.epoch}, though every loss until then was"
        )

    def raise_if_nonfinite(self, *, kept: bool) -> None:
        """Raises StageError where something is not finite. `kept`: whether there is a checkpoint."""
        if (what := self.describe_nonfinite()) is not None:
            there = "the last good checkpoint is kept" if kept else "there is no checkpoint yet"
            raise StageError(f"{what}; {there}: lower train.lr or the loss's weight")
