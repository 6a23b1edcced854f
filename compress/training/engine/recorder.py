"""A step recorded once and replayed. What changes from step to step stands in tensors that keep their place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from compress.training.step import Batch, Step

WARM_UP = 3  # steps before a recording: they choose kernels, and the last shows whether a step waits for the device

Losses = dict[str, Tensor]
Run = Callable[[], Losses]


class Recorder(Protocol):
    """How a device records steps."""

    def beside(self, run: Run) -> Losses:
        """Run one before a recording."""

    def waits(self, run: Run) -> tuple[Losses, bool]:
        """`beside`, and whether it waited for the device, which a recording cannot."""

    def record(self, run: Run) -> Run:
        """Record without computing anything; what is returned replays it. Raises RuntimeError, and has then left nothing behind."""

    def free(self) -> None:
        """Give back the memory of a recording that failed or is over."""


class Recorded:
    """A step that is recorded after its first few, and anew in each phase of the method. Batches of another size are given to `other`.

    `warn` is told once where recording fails; then no step is recorded. `count`: replayed steps, for a test.
    """

    def __init__(self, step: Step, other: Step, size: int, recorder: Recorder, warn: Callable[[str], None]) -> None:
        self.step, self.other, self.size, self.recorder, self.warn = step, other, size, recorder, warn
        self.batch: Batch | None = None
        self.replay: Run | None = None
        self.warm, self.phase, self.failed, self.count = 0, None, False, 0

    def __call__(self, batch: Batch) -> Losses:
        """See `Step`. The losses of a replayed step stand where the next one writes its own."""
        if len(batch.index) != self.size:
            return self.other(batch)
        if self.failed:
            return self.step(batch)
        phase: Any = self.step.method.phase
        if phase != self.phase:  # another phase computes other losses
            self.replay, self.warm, self.phase = None, 0, phase
        if self.warm < WARM_UP:
            self.warm += 1
            return self._before(batch)
        if self.replay is None:
            self._record(batch)
        if self.replay is None or self.batch is None:
            return self.step(batch)
        for name in ("index", "view", "known", "epoch", "step", "pixels"):
            kept, new = getattr(self.batch, name), getattr(batch, name)
            if kept is not None:
                kept.copy_(new)
        self.count += 1
        return self.replay()

    def _before(self, batch: Batch) -> Losses:
        """A step before the recording. The first ones may wait: some look at something once."""
        if self.warm < WARM_UP:
            return self.recorder.beside(partial(self.step, batch))
        losses, waits = self.recorder.waits(partial(self.step, batch))
        if waits:
            self._give_up("it waits for the device")
        return losses

    def _record(self, batch: Batch) -> None:
        known, pixels = (None if value is None else value.clone() for value in (batch.known, batch.pixels))
        kept = replace(
            batch,
            index=batch.index.clone(),
            view=batch.view.clone(),
            epoch=batch.epoch.clone(),
            step=batch.step.clone(),
        )
        self.batch, why = replace(kept, known=known, pixels=pixels), None
        try:
            self.replay = self.recorder.record(partial(self.step, self.batch))
        except RuntimeError as error:  # the first one: what ends a broken recording raises, too
            why = reason(error.__context__ if isinstance(error.__context__, RuntimeError) else error)
        if why is not None:  # not within `except`: the error holds the step's tensors
            self._give_up(why)

    def _give_up(self, why: str) -> None:
        self.failed, self.batch = True, None
        self.step.optimizer.zero_grad(set_to_none=True)  # gradients may lie in the recording's memory
        self.recorder.free()
        self.warn(f"train.engine: this step cannot be recorded ({why}); it runs without, slower")


def reason(error: BaseException) -> str:
    """Why something of the engine failed, one line; what a backend raised without the compiler's frame around it."""
    cause = getattr(error, "inner_exception", None) or error
    if isinstance(cause, torch.OutOfMemoryError):
        return "the device's memory is full"
    return next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
