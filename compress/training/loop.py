"""The training loop: one student, one method, images on the device, resumable after every step.

The order of images, their views and the learning rate are pure functions of (seed, epoch, step). A checkpoint therefore
holds only the networks, the optimizer, the step and the random state. A resumed run ends with the same bits as one
that was never stopped, given the same thread count, CPU and C compiler.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event

import torch
from torch import nn

from compress.core.distributed import ALONE, Group
from compress.core.errors import Interrupted
from compress.core.records.training import Normalization
from compress.methods import Method
from compress.recipe.schema import ResolvedTrain
from compress.training import batch_norm, checkpoint, schedule
from compress.training.batches import batches
from compress.training.checkpoint import State
from compress.training.engine.choose import StepRunner
from compress.training.evaluation import ImageSet
from compress.training.interrupt import stop_between_steps
from compress.training.loss_meter import LossMeter
from compress.training.precision import gpu_name
from compress.training.session import Progress, Session
from compress.training.shipped_weights import ShippedWeights
from compress.training.step import COSINES, Batch, TeacherSource

# Every so many steps the loop looks at the clock, and every so many seconds at the losses. Reading losses waits for the
# device, so those of a short epoch stay there until its end.
CHECK_EVERY_STEPS, CHECK_SECONDS = 50, 5.0
# Between two checkpoints of a long epoch.
SAVE_SECONDS = 600.0


@dataclass(frozen=True)
class FitResult:
    """How training went; the networks themselves were trained in place.

    Attributes:
        history: one row per epoch.
        seconds: training time over all runs, without validation.
        images_per_second: over that time.
        precision: "float32" or "bf16".
        kernels: see `kernels.use_fast_kernels`.
        shipped_epoch: the 1-based epoch whose weights the networks have; 0: those that training started from.
        steps: that were taken.
        gpu: the GPU's name, None on a CPU.
    """

    history: list[dict[str, float]]
    seconds: float
    images_per_second: float
    precision: str
    threads: int
    kernels: str
    shipped_epoch: int
    steps: int
    gpu: str | None = None


def fit(
    student: nn.Module,
    method: Method,
    image_set: ImageSet,
    *,
    train: ResolvedTrain,
    normalization: Normalization,
    taps: Mapping[str, str],
    teacher: TeacherSource | None,
    device: str,
    folder: Path,
    progress: Progress,
    group: Group = ALONE,
    epochs_before: int = 0,
    start_may_ship: bool = False,
    resume_hint: str = "run the same command again to resume",
) -> FitResult:
    """Train `student` and `method` in place; resume from `folder/checkpoint.pt` where there is one.

    Args:
        student: the network, on the device.
        method: turns a batch's signals into losses; its own modules train with the student.
        image_set: training and validation images, on the device.
        train: resolved settings.
        normalization: the student's mean and standard deviation.
        taps: all of the student's taps, by name; the loop reads those that the method asks for.
        teacher: gives the teacher's signals, or None where the method reads none.
        device: "cpu", "cuda" or "cuda:N".
        folder: gets checkpoint.pt and history.csv, from rank 0.
        progress: where the loop reports.
        group: the processes that share each batch.
        epochs_before: epochs that the method has been trained already. Its ramps and phases continue from there, while
            order, views and learning rate start anew.
        start_may_ship: whether `train.keep: best` may keep the weights that training starts from.
        resume_hint: how the message of an interrupted training ends.

    Raises:
        StageError: a loss is not finite, or a process of the group is gone.
        Interrupted: after Ctrl-C or SIGTERM; a checkpoint is written first.
        UsageError: the batch is too small for the method or for the number of processes.
    """
    session = Session(student, method, image_set, train, normalization, taps, teacher, device, folder, progress, group)
    loop, interrupted = _Loop(session, epochs_before), None
    try:
        if start_may_ship:
            loop.shipped.keep_start()
        loop.run_step = session.choose_engine()
        with stop_between_steps(alone=group.size == 1) as stop:
            while session.state.epoch <= train.epochs and not loop.exhausted:
                loop.train_epoch(stop)
                loop.finish_epoch(stop)
        loop.shipped_epoch = loop.shipped.load()
        if teacher is not None and group.size > 1:
            teacher.merge(group.gather)
    except KeyboardInterrupt:
        interrupted = loop.save_interrupted()
    finally:
        session.close()
    if interrupted is None:
        return loop.result()
    # torchrun ends all processes as soon as one has ended, so the others wait until rank 0 has written everything.
    if loop.stopping:
        group.broadcast(None)
    raise Interrupted(f"{interrupted}; {resume_hint}")


class _Loop:
    """The epochs of one `fit`.

    Attributes:
        run_step: takes a step: the step itself, compiled or recorded.
        exhausted: whether `train.patience` is used up.
        stopping: whether all ranks have agreed to stop at the same step.
        meter: losses since `part_started_at`.
        part_started_at: when the running part of an epoch began: the epoch itself, or the rest of one that was resumed.
        part_first_step: the step of the epoch at which that part began.
    """

    def __init__(self, session: Session, epochs_before: int) -> None:
        self.session, self.epochs_before, self.stopping = session, epochs_before, False
        self.run_step: StepRunner = session.step
        self.shipped = ShippedWeights(session)
        # Every rank has rank 0's history where training is resumed.
        self.exhausted, self.shipped_epoch = self.shipped.exhausted(), 0
        # A traced cosine is summed like a loss. With this weight the sum over an epoch's traced steps and over the
        # ranks is a mean after the division by the epoch's images, even when a resumed run adds the rest.
        traced_steps = -(-session.steps_per_epoch // (session.train.trace_gradients or 1))
        self.cosine_weight = session.images_per_epoch / traced_steps / session.group.size
        self.teacher_saved_at = session.checkpoints.saved_at = time.monotonic()
        self._start_part()

    def train_epoch(self, stop: Event) -> None:
        """Take the epoch's remaining steps; raise KeyboardInterrupt between two once all ranks know of `stop`."""
        self._start_part()
        session, state = self.session, self.session.state
        group, train, steps = session.group, session.train, session.steps_per_epoch
        epochs_done = self.epochs_before + state.epoch - 1
        session.student.train()
        session.method.train()
        if train.batch_norm == "frozen":
            batch_norm.freeze(session.student)
        session.method.start_epoch(epochs_done + 1)
        order, view = session.draws(state.epoch)
        epoch = torch.tensor(float(epochs_done + 1), device=session.device)
        step_number = torch.tensor(epochs_done * steps + state.step, device=session.device)
        checked_at, trace_every = time.monotonic(), train.trace_gradients or 0
        for at, index, views, cached_logits, pixels in batches(
            order, view, state.step, session.batch_size, steps, session.step, session.stream
        ):
            self._stop_if(group.any_rank(stop.is_set(), at))
            session.learning_rate.set(schedule.learning_rate(train, state.epoch, at / steps))
            own = group.shard(index)
            batch = Batch(own, group.shard(views), cached_logits, epoch, step_number, len(index), pixels)
            trace = trace_every > 0 and at % trace_every == 0
            losses = session.step(batch, trace=True) if trace else self.run_step(batch)
            self.meter.add(losses, {name: self._weight(name, len(own)) for name in losses}, at)
            step_number += 1
            state.step += 1
            session.progress.step(len(index), losses)
            if state.step % CHECK_EVERY_STEPS == 0:
                if time.monotonic() - checked_at > CHECK_SECONDS:
                    self.meter.raise_if_nonfinite(kept=session.checkpoints.exists)
                    checked_at = time.monotonic()
                if group.any_rank(time.monotonic() - session.checkpoints.saved_at > SAVE_SECONDS, 0):
                    self._save_mid_epoch()
        self.meter.raise_if_nonfinite(kept=session.checkpoints.exists)

    def _weight(self, name: str, images: int) -> float:
        """Return how often a loss of `images` images counts in the epoch's sum."""
        return self.cosine_weight if name in COSINES else images

    def finish_epoch(self, stop: Event) -> None:
        """Validate, then report and save the epoch. Raise KeyboardInterrupt after Ctrl-C or SIGTERM."""
        session, state = self.session, self.session.state
        self._carry(state)
        seconds = time.monotonic() - self.part_started_at
        with self.shipped.in_place():
            state.history.append(self._row(seconds))
            self.shipped.keep_best(state.history[-1], state.epoch)
        state.sums, state.step = {}, 0
        state.epoch += 1
        self._start_part()
        session.progress.epoch(state.history[-1])
        # History before checkpoint: a run killed between the two writes it again; in the other order the row of the
        # last epoch could be lost.
        checkpoint.write_history(session.folder / checkpoint.HISTORY, state.history)
        session.checkpoints.save(state)
        if session.teacher is not None and session.group.is_main:
            if time.monotonic() - self.teacher_saved_at > SAVE_SECONDS:
                session.teacher.save()
                self.teacher_saved_at = time.monotonic()
        # The other ranks wait here while rank 0 validates, and not in the next step, whose messages time out sooner.
        self.exhausted = session.group.broadcast(self.shipped.exhausted())
        session.checkpoints.saved_at = time.monotonic()
        # Asked here too, because nothing may swallow a Ctrl-C during validation and decoders do not wait for long.
        self._stop_if(session.group.any_rank(stop.is_set(), 0))

    def _row(self, seconds: float) -> dict[str, float]:
        """Return the epoch's row of the history, whose last part took `seconds`; rank 0 alone validates."""
        session, image_set = self.session, self.session.image_set
        state, train = session.state, session.train
        count = min(state.step * train.batch_size, len(image_set.train_index))
        row: dict[str, float] = {"epoch": state.epoch, "lr": schedule.learning_rate(train, state.epoch, 0.0)}
        row |= {name: value / count for name, value in state.sums.items()}
        row |= self.shipped.validate()
        row["images_per_second"] = round((count - self.part_first_step * session.batch_size) / max(seconds, 1e-9), 1)
        return row

    def _stop_if(self, agreed: bool) -> None:
        """Raise KeyboardInterrupt where the ranks have agreed to stop."""
        self.stopping = agreed
        if agreed:
            raise KeyboardInterrupt

    def _start_part(self) -> None:
        """Start counting losses and seconds, for a whole epoch or for the rest of a resumed one."""
        state = self.session.state
        self.meter = LossMeter(self.session.parameters, state.epoch)
        self.part_started_at, self.part_first_step = time.monotonic(), state.step

    def _carry(self, state: State) -> None:
        """Add the running part's losses, of all ranks, and its seconds to `state`."""
        for name, value in self.session.group.all_reduce_sum(self.meter.sums()).items():
            state.sums[name] = state.sums.get(name, 0.0) + value
        state.seconds += time.monotonic() - self.part_started_at

    def _save_mid_epoch(self) -> None:
        """Write a checkpoint without ending the running part."""
        state = replace(self.session.state, sums=dict(self.session.state.sums))
        self.meter.raise_if_nonfinite(kept=self.session.checkpoints.exists)
        self._carry(state)
        self.session.checkpoints.save(state)

    def save_interrupted(self) -> str:
        """Write a checkpoint, unless a loss or weight is not finite; return a sentence on where training stopped."""
        session, epochs = self.session, self.session.train.epochs
        self._carry(session.state)
        if self.meter.describe_nonfinite() is None and not self.shipped.loaded:
            session.checkpoints.save(session.state)
        there = "checkpoint kept" if session.checkpoints.exists else "there is no checkpoint yet"
        return f"interrupted in epoch {min(session.state.epoch, epochs)} of {epochs}, {there}"

    def result(self) -> FitResult:
        """Return how training went; the networks get the weights that ship."""
        session, state = self.session, self.session.state
        images = session.images_per_epoch * len(state.history)
        return FitResult(
            history=state.history,
            seconds=state.seconds,
            images_per_second=images / max(state.seconds, 1e-9),
            precision=session.checkpoints.precision,
            threads=session.threads,
            kernels=session.kernels,
            shipped_epoch=self.shipped_epoch,
            steps=session.steps_per_epoch * len(state.history),
            gpu=gpu_name(session.device),
        )
