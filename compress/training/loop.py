"""The training loop: one student, one method, data on the device, resumable at every step.

Order of pictures, views and learning rate are pure functions of (seed, epoch, step), so a checkpoint is the networks, the optimizer,
the step and the random state: a killed run goes on and ends with the same bits (same thread count, CPU, C compiler).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Protocol

import torch
from torch import Tensor, nn

from compress.core.distributed import ALONE, Group, sync_batchnorm
from compress.core.errors import Interrupted
from compress.core.malloc import keep_freed_memory
from compress.core.records.base import CHECKPOINT
from compress.core.records.training import Normalization
from compress.data.augment import views
from compress.data.streaming.batches import Stream
from compress.methods import Method
from compress.models.taps import Tapped
from compress.recipe.schema import ResolvedTrain
from compress.training import checkpoint, schedule
from compress.training.batches import batches
from compress.training.checkpoint import State
from compress.training.engine.compile import release
from compress.training.engine.modes import Rate, classifier_of, engine, keep_layout
from compress.training.evaluation import ImageSet, accuracy, predict
from compress.training.interrupt import between_steps
from compress.training.kernels import TORCH, quicker
from compress.training.loss_meter import LossMeter
from compress.training.precision import card, resolve_precision
from compress.training.step import TRACED, Batch, Step, TeacherSource, sgd, traced, trainable

CHECK_EVERY_STEPS = 50  # steps between two looks at the clock
CHECK_SECONDS = (
    5.0  # between two at the losses, which wait for the device: those of a short epoch stay there to its end
)
SAVE_SECONDS = 600.0  # between two checkpoints of a long epoch


class Progress(Protocol):
    """What the loop tells while it runs."""

    def start_at(self, epoch: int, step: int) -> None: ...
    def warn(self, text: str) -> None: ...
    def step(self, images: int, losses: dict[str, Tensor]) -> None: ...
    def epoch(self, row: dict[str, float]) -> None: ...


@dataclass(frozen=True)
class FitResult:
    """What training was. `history` is one row an epoch; the networks were changed in place. `kernels`: see `kernels.quicker`."""

    history: list[dict[str, float]]
    seconds: float
    images_per_second: float
    precision: str
    threads: int
    kernels: str
    shipped_epoch: int
    gpu: str | None = None  # the card's name


def fit(
    student: nn.Module,
    method: Method,
    pictures: ImageSet,
    *,
    train: ResolvedTrain,
    normalization: Normalization,
    taps: Mapping[str, str],
    teacher: TeacherSource | None,
    device: str,
    folder: Path,
    progress: Progress,
    group: Group = ALONE,
    before: int = 0,
    resume_hint: str = "run the same command again to resume",
) -> FitResult:
    """Train `student` and `method` in place; resume from `folder/checkpoint.pt` where there is one.

    Args:
        train: resolved settings (no open defaults). taps: the student's, by name; those that the method asks for are read.
        teacher: answers per (picture, view), or None where the method reads none.
        folder: holds checkpoint.pt and history.csv (of the first process). group: the processes that share each batch. before:
            epochs that the method has behind it; its ramps and steps go on from there, while pictures, views and learning rate begin anew.
    Raises: StageError on a loss that is not finite or a process that is gone, Interrupted after Ctrl-C (a checkpoint is written first),
        UsageError for a batch too small for the method or the processes.
    """
    training = _Training(
        student, method, pictures, train, normalization, taps, teacher, device, folder, progress, group, before
    )
    ended = None
    try:
        training.loop()
    except KeyboardInterrupt:
        ended = training.interrupted()
    finally:
        training.close()
    if ended is None:
        return training.fitted()
    if training.agreed:  # the others end when all is written: torchrun ends all as soon as one has ended
        group.broadcast(None)
    raise Interrupted(f"{ended}; {resume_hint}")


class _Training:
    """One call of `fit`, as far as its checkpoint when it is made. What a method asks of the group, every process asks in the same order.

    size: pictures of a batch. steps, seen: of an epoch, the latter pictures. kept: whether there is a checkpoint; saved: when the last was written, learnt:
    when the teacher's answers were. agreed: whether all processes were to stop at the same step. meter, begun, first: losses, beginning and first step of
    the part of an epoch that runs, see `_begin`.
    """

    def __init__(
        self,
        student: nn.Module,
        method: Method,
        pictures: ImageSet,
        train: ResolvedTrain,
        normalization: Normalization,
        taps: Mapping[str, str],
        teacher: TeacherSource | None,
        device: str,
        folder: Path,
        progress: Progress,
        group: Group,
        before: int,
    ) -> None:
        self.student, self.method, self.pictures, self.train, self.normalization, self.taps = (
            student,
            method,
            pictures,
            train,
            normalization,
            taps,
        )
        self.teacher, self.device, self.folder, self.progress, self.group, self.before = (
            teacher,
            device,
            folder,
            progress,
            group,
            before,
        )
        self.epochs, self.seed, count = train.epochs, train.seed, len(pictures.train_index)
        smallest = (
            max(method.smallest_batch(), schedule.smallest_batch(student, pictures.image_size, device)) * group.size
        )
        self.size = schedule.batch_size(train.batch_size, count, smallest)
        self.steps = schedule.steps(count, self.size, smallest)
        self.agreed = False
        self.seen = min(self.steps * self.size, count)
        # a traced cosine is summed like a loss: an epoch's mean over its traced steps and the processes then survives an interruption
        self.cosine_share = self.seen / -(-self.steps // (train.trace_gradients or 1)) / group.size
        method.set_process_group(group)
        keep_freed_memory()
        self.restore_batchnorm = sync_batchnorm(
            group, device, train.sync_batchnorm, progress.warn if group.is_main else lambda _: None, student, method
        )
        self.parameters = trainable(student, method)
        self.optimizer = sgd(
            self.parameters,
            lr=train.lr,
            momentum=train.momentum,
            weight_decay=train.weight_decay,
            nesterov=train.nesterov,
        )
        torch.manual_seed(self.seed)  # dropout; everything else has a stateless source
        self.threads_before = torch.get_num_threads()
        torch.set_num_threads(train.threads or self.threads_before)
        self._resume()
        self.rate = Rate(self.optimizer, device)
        self._begin()
        self.tapped = Tapped(student, {name: taps[name] for name in method.student_taps})
        self.stream = pictures.images if isinstance(pictures.images, Stream) else None
        self.step = self._build_step()
        self.saved = self.learnt = time.monotonic()
        self.classifier, self.hooks_off = classifier_of(student, taps), keep_layout(student)
        self.kernels_off, self.kernels = (lambda: None), TORCH

    def _resume(self) -> None:
        """The first process's checkpoint in every process, or the beginning; then the first process's weights."""
        path = self.folder / CHECKPOINT
        self.state, self.precision = State(), resolve_precision(self.train.precision, self.device)
        content = self.group.broadcast(path.read_bytes() if self.group.is_main and path.is_file() else None)
        self.kept = content is not None
        if content is not None:
            self.state, self.precision = checkpoint.load(content, path, self.student, self.method, self.optimizer)
            self.progress.start_at(self.state.epoch, self.state.step)
        self.group.broadcast_parameters(
            self.student, self.method, done=(self.state.epoch - 1) * self.steps + self.state.step
        )

    def _build_step(self) -> Step:
        pictures, images = self.pictures, None if isinstance(self.pictures.images, Stream) else self.pictures.images
        mean, std = (
            torch.tensor(values, device=self.device) for values in (self.normalization.mean, self.normalization.std)
        )
        return Step(
            self.tapped,
            self.method,
            images,
            pictures.labels,
            pictures.augment,
            pictures.image_size,
            mean,
            std,
            self.teacher,
            self.optimizer,
            self.parameters,
            self.precision,
            self.group,
            traced(self.student, self.taps) if self.train.trace_gradients else {},
            pictures.distortion,
        )

    def loop(self) -> None:
        """All epochs that are left. Raises KeyboardInterrupt between two steps after Ctrl-C."""
        if self.device == "cpu":
            self.kernels_off, self.kernels = quicker(
                self.student, self.pictures.image_size, self.train.engine, self.progress.warn
            )
        self.run = engine(
            self.train.engine, self.step, self.size, self.steps * self.epochs, self.classifier, self.progress.warn
        )
        with between_steps(alone=self.group.size == 1) as stop:
            while self.state.epoch <= self.epochs:
                self._epoch(stop)
                self._end_epoch()
                self._keep_epoch()
                self._stop(
                    self.group.any_rank(stop.is_set(), 0)
                )  # during validation: nothing may swallow a Ctrl-C, and decoders do not wait for long
        if self.teacher is not None and self.group.size > 1:
            self.teacher.merge(self.group.gather)

    def _epoch(self, stop: Event) -> None:
        """The epoch's steps that are left."""
        self._begin()
        state, group, done = self.state, self.group, self.before + self.state.epoch - 1
        self.student.train()
        self.method.train()
        self.method.start_epoch(done + 1)
        order, view = (
            schedule.order(self.pictures.train_index, self.seed, state.epoch, self.pictures.shards),
            self._views(),
        )
        epoch = torch.tensor(float(done + 1), device=self.device)
        number = torch.tensor(done * self.steps + state.step, device=self.device)
        looked = time.monotonic()
        for at, index, known, pixels in batches(order, view, state.step, self.size, self.steps, self.step, self.stream):
            self._stop(group.any_rank(stop.is_set(), at))
            self.rate.set(schedule.learning_rate(self.train, state.epoch, at / self.steps))
            mine = group.shard(index)
            losses = self._take_step(Batch(mine, view[mine], known, epoch, number, len(index), pixels), at)
            number += 1
            state.step += 1
            self.progress.step(len(index), losses)
            if state.step % CHECK_EVERY_STEPS == 0:
                if time.monotonic() - looked > CHECK_SECONDS:
                    self.meter.raise_if_nonfinite(kept=self.kept)
                    looked = time.monotonic()
                if group.any_rank(time.monotonic() - self.saved > SAVE_SECONDS, 0):
                    self._save_part()
        self.meter.raise_if_nonfinite(kept=self.kept)

    def _stop(self, agreed: bool) -> None:
        """Raises KeyboardInterrupt where it was agreed on, in every process at the same step."""
        self.agreed = agreed
        if agreed:
            raise KeyboardInterrupt

    def _views(self) -> Tensor:
        """The epoch's view of each picture, int64 (P,)."""
        pictures = self.pictures
        return views.views_of_epoch(
            len(pictures.images),
            self.state.epoch,
            self.seed,
            pictures.augment,
            self.train.views,
            pictures.image_size,
            distorted=pictures.distortion is not None,
        ).to(self.device)

    def _take_step(self, batch: Batch, at: int) -> dict[str, Tensor]:
        """Take step `at` of the epoch: its losses, which the meter has noted."""
        every = self.train.trace_gradients
        losses = self.step(batch, trace=True) if every and at % every == 0 else self.run(batch)
        self.meter.add(losses, {name: self.cosine_share if name in TRACED else len(batch.index) for name in losses}, at)
        return losses

    def _end_epoch(self) -> None:
        """Validate, add the epoch's row, keep the best, move to the next epoch."""
        state, train, pictures = self.state, self.train, self.pictures
        self._carry(state)
        seconds, count = time.monotonic() - self.begun, min(state.step * train.batch_size, len(pictures.train_index))
        row: dict[str, float] = {"epoch": state.epoch, "lr": schedule.learning_rate(train, state.epoch, 0.0)}
        row |= {name: value / count for name, value in state.sums.items()}
        if len(pictures.validation_index) and self.group.is_main:
            network = self.method.deployed(self.student)
            logits = predict(
                network, pictures.validation(), pictures.image_size, self.normalization, device=pictures.labels.device
            )
            row["top1_validation"] = accuracy(logits, pictures.labels[pictures.validation_index])
        row["images_per_second"] = round((count - self.first * self.size) / max(seconds, 1e-9), 1)
        state.history.append(row)
        if train.keep == "best" and row.get("top1_validation", 0.0) >= (state.best or {"top1": -1.0})["top1"]:
            copies = [
                {name: value.detach().clone() for name, value in module.state_dict().items()}
                for module in (self.student, self.method)
            ]
            state.best = {
                "top1": row.get("top1_validation", 0.0),
                "epoch": state.epoch,
                "student": copies[0],
                "method": copies[1],
            }
        state.sums, state.step = {}, 0
        state.epoch += 1
        self._begin()

    def _keep_epoch(self) -> None:
        """Tell and write what the epoch gave."""
        self.progress.epoch(self.state.history[-1])
        # The history first: a run killed between the two writes it again, one killed behind the last checkpoint would not.
        checkpoint.write_history(self.folder / checkpoint.HISTORY, self.state.history)
        self._save(self.state)
        if self.teacher is not None and self.group.is_main and time.monotonic() - self.learnt > SAVE_SECONDS:
            self.teacher.save()
            self.learnt = time.monotonic()
        self.group.broadcast(
            None
        )  # the others wait here while the first process validates, not in the next step, whose messages have less time
        self.saved = time.monotonic()

    def _begin(self) -> None:
        """A part of an epoch begins: all of it, or what an earlier run left."""
        self.meter, self.begun, self.first = (
            LossMeter(self.parameters, self.state.epoch),
            time.monotonic(),
            self.state.step,
        )

    def _carry(self, state: State) -> None:
        """Add the part's losses, of all processes, and its seconds to `state`."""
        for name, value in self.group.all_reduce_sum(self.meter.sums()).items():
            state.sums[name] = state.sums.get(name, 0.0) + value
        state.seconds += time.monotonic() - self.begun

    def _save_part(self) -> None:
        """A checkpoint in the middle of the part, which goes on."""
        part = replace(self.state, sums=dict(self.state.sums))
        self.meter.raise_if_nonfinite(kept=self.kept)
        self._carry(part)
        self._save(part)

    def _save(self, state: State) -> None:
        """A checkpoint, which the first process writes."""
        if self.group.is_main:
            checkpoint.save(self.folder / CHECKPOINT, self.student, self.method, self.optimizer, state, self.precision)
        self.saved, self.kept = time.monotonic(), True

    def interrupted(self) -> str:
        """Write a checkpoint, unless something is not finite; where the training stands, in words."""
        self._carry(self.state)
        if self.meter.describe_nonfinite() is None:
            self._save(self.state)
        there = "checkpoint kept" if self.kept else "there is no checkpoint yet"
        return f"interrupted in epoch {min(self.state.epoch, self.epochs)} of {self.epochs}, {there}"

    def close(self) -> None:
        """Networks, threads and processes as they were before; what the teacher said is kept."""
        self.threads = torch.get_num_threads()
        torch.set_num_threads(self.threads_before)
        self.tapped.close()
        self.hooks_off()
        self.kernels_off()
        release(self.classifier)
        self.optimizer.zero_grad(
            set_to_none=True
        )  # what is trained ships without them, and a recording's memory goes with them
        self.restore_batchnorm()
        self.method.set_process_group(ALONE)
        if self.stream is not None:
            self.stream.close()
        if self.teacher is not None and self.group.is_main:
            self.teacher.save()

    def fitted(self) -> FitResult:
        """What the training was; the networks get the weights that ship."""
        state, shipped = self.state, self.epochs
        if self.train.keep == "best" and state.best is not None:
            self.student.load_state_dict(state.best["student"])
            self.method.load_state_dict(state.best["method"])
            shipped = state.best["epoch"]
        seen = self.seen * len(state.history)
        speed = seen / max(state.seconds, 1e-9)
        return FitResult(
            state.history, state.seconds, speed, self.precision, self.threads, self.kernels, shipped, card(self.device)
        )
