"""A step recorded once and replayed; whatever changes from step to step lies in tensors that keep their place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from compress.training.step import Batch, Step

# Steps before a recording. They choose kernels, and the last one shows whether a step waits for the device.
WARM_UP_STEPS = 3

Losses = dict[str, Tensor]
Run = Callable[[], Losses]


class Recorder(Protocol):
    """How a device records steps."""

    def warm_up(self, run: Run) -> Losses:
        """Run a step before a recording."""

    def warm_up_watching(self, run: Run) -> tuple[Losses, bool]:
        """Run a step, and return whether it waited for the device, which a recorded step must not."""

    def record(self, run: Run) -> Run:
        """Record a step without computing anything, and return what replays it.

        Raises:
            RuntimeError: the step cannot be recorded; nothing of the attempt is left behind.
        """

    def free(self) -> None:
        """Give back the memory of a recording that failed or is over."""


class RecordedStep:
    """A step that is recorded after its first few runs, and again in each phase of the method.

    Args:
        step: what is recorded.
        other: runs batches of another size.
        size: images per batch of this rank.
        recorder: the device's.
        warn: called once where recording fails; from then on no step is recorded.

    Attributes:
        replays: how many steps were replayed, for tests.
    """

    def __init__(self, step: Step, other: Step, size: int, recorder: Recorder, warn: Callable[[str], None]) -> None:
        self.step, self.other, self.size, self.recorder, self.warn = step, other, size, recorder, warn
        self.batch: Batch | None = None
        self.replay: Run | None = None
        self.warm_steps, self.phase, self.failed, self.replays = 0, None, False, 0

    def __call__(self, batch: Batch) -> Losses:
        """Take one step, see `Step`. The next replayed step overwrites the losses that a replayed step returned."""
        if len(batch.index) != self.size:
            return self.other(batch)
        if self.failed:
            return self.step(batch)
        phase: Any = self.step.method.phase
        # Another phase computes other losses.
        if phase != self.phase:
            self.replay, self.warm_steps, self.phase = None, 0, phase
        if self.warm_steps < WARM_UP_STEPS:
            self.warm_steps += 1
            return self._warm_up(batch)
        if self.replay is None:
            self._record(batch)
        if self.replay is None or self.batch is None:
            return self.step(batch)
        for name in ("index", "view", "cached_teacher_logits", "epoch", "step", "pixels"):
            kept, new = getattr(self.batch, name), getattr(batch, name)
            if kept is not None:
                kept.copy_(new)
        self.replays += 1
        return self.replay()

    def _warm_up(self, batch: Batch) -> Losses:
        """Take a step before the recording. Only the last one must not wait: some methods look at a value once."""
        if self.warm_steps < WARM_UP_STEPS:
            return self.recorder.warm_up(partial(self.step, batch))
        losses, waits = self.recorder.warm_up_watching(partial(self.step, batch))
        if waits:
            self._give_up("it waits for the device")
        return losses

    def _record(self, batch: Batch) -> None:
        logits, pixels = (
            None if value is None else value.clone() for value in (batch.cached_teacher_logits, batch.pixels)
        )
        self.batch = replace(
            batch,
            index=batch.index.clone(),
            view=batch.view.clone(),
            epoch=batch.epoch.clone(),
            step=batch.step.clone(),
            cached_teacher_logits=logits,
            pixels=pixels,
        )
        why = None
        try:
            self.replay = self.recorder.record(partial(self.step, self.batch))
        except RuntimeError as error:
            # The first error is the cause: ending a broken recording raises another one.
            why = failure_reason(error.__context__ if isinstance(error.__context__, RuntimeError) else error)
        # Outside of `except`, because the error holds the step's tensors.
        if why is not None:
            self._give_up(why)

    def _give_up(self, why: str) -> None:
        self.failed, self.batch = True, None
        # Gradients may lie in the recording's memory.
        self.step.optimizer.zero_grad(set_to_none=True)
        self.recorder.free()
        self.warn(f"train.engine: this step cannot be recorded ({why}); it runs without, slower")


def failure_reason(error: BaseException) -> str:
    """Return one line on why an engine failed, taken from what a backend raised inside the compiler's own error."""
    cause = getattr(error, "inner_exception", None) or error
    if isinstance(cause, torch.OutOfMemoryError):
        return "the device's memory is full"
    return next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
