"""The training loop: one student, one method, data on the device, resumable at every step.

Order of pictures, views and learning rate are pure functions of (seed, epoch, step), so a checkpoint is the networks, the optimizer,
the step and the random state: a killed run goes on and ends with the same bits (same thread count, CPU, C compiler).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from compress import checkpoint, schedule
from compress.allocation import keep_freed_memory
from compress.batches import batches
from compress.checkpoint import State
from compress.compiled import release
from compress.data import views
from compress.distributed import ALONE, Group, synchronise
from compress.engine import Rate, classifier_of, engine, keep_layout
from compress.errors import Interrupted
from compress.kernels import TORCH, quicker
from compress.meter import Meter
from compress.methods import Method
from compress.models.taps import Tapped
from compress.precision import exact, resolve_precision
from compress.records import CHECKPOINT
from compress.results import Distortion, Normalization
from compress.schema import Train
from compress.step import TRACED, Batch, Step, Teaching, traced, trainable
from compress.stopping import between_steps
from compress.stream import Stream

LOOK = 50  # steps between two looks at the clock
LOOK_SECONDS = 5.0  # between two at the losses, which wait for the device: those of a short epoch stay there to its end
EVALUATED = 250  # pictures at once where nothing is trained, at least
SAVE_SECONDS = 600.0  # between two checkpoints of a long epoch


class Progress(Protocol):
    """What the loop tells while it runs."""

    def start_at(self, epoch: int, step: int) -> None: ...
    def warn(self, text: str) -> None: ...
    def step(self, images: int, losses: dict[str, Tensor]) -> None: ...
    def epoch(self, row: dict[str, float]) -> None: ...


@dataclass(frozen=True)
class Pictures:
    """Training pictures on the device: uint8 (N, S, S, 3) prepared for views, or a stream; labels (N,) int64, and the two index sets.

    `held`: of a stream the validation pictures uint8 (V, S, S, 3) as in evaluation, on the CPU.
    """

    images: Tensor | Stream
    labels: Tensor
    train_index: Tensor
    validation_index: Tensor
    augment: str
    image_size: int
    held: Tensor | None = None
    distortion: Distortion | None = None

    @property
    def shards(self) -> schedule.Shards | None:
        """Where an epoch goes through a stream's shards some at a time."""
        return self.images.shards if isinstance(self.images, Stream) else None

    def validation(self) -> Tensor:
        """The validation pictures, uint8 (V, S, S, 3)."""
        return self.images[self.validation_index] if self.held is None else self.held


@dataclass(frozen=True)
class Fitted:
    """What training was. `history` is one row an epoch; the networks were changed in place. `kernels`: see `kernels.quicker`."""

    history: list[dict[str, float]]
    seconds: float
    images_per_second: float
    precision: str
    threads: int
    kernels: str
    shipped_epoch: int


@torch.no_grad()
def predict(
    model: nn.Module, images: Tensor, image_size: int, normalization: Normalization, *, batch_size: int | None = None, device: torch.device | None = None
) -> Tensor:
    """Float32 logits (N, K) of stored uint8 pictures (N, S, S, 3) through the evaluation view; the model's mode is kept.

    `device`: the model's, where the pictures are on another. `batch_size`: by the device and the pictures' size where none is given.
    """
    training, place = model.training, device or images.device
    size = batch_size or max(EVALUATED, schedule.rows_at_once(place, image_size))
    model.eval()
    out, mean, std = [], *(torch.tensor(values, device=place) for values in (normalization.mean, normalization.std))
    with exact():
        for begin in range(0, len(images), size):
            pixels = views.evaluation_view(images[begin : begin + size], image_size).to(place)
            out.append(model(views.to_float(pixels, mean, std)).float())
    model.train(training)
    return torch.cat(out)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Top-1 as a fraction."""
    return int((logits.argmax(dim=1) == labels).sum()) / len(labels)


def fit(
    student: nn.Module,
    method: Method,
    pictures: Pictures,
    *,
    train: Train,
    normalization: Normalization,
    taps: Mapping[str, str],
    teacher: Teaching | None,
    device: str,
    folder: Path,
    progress: Progress,
    group: Group = ALONE,
    before: int = 0,
    resume_hint: str = "run the same command again to resume",
) -> Fitted:
    """Train `student` and `method` in place; resume from `folder/checkpoint.pt` where there is one.

    Args:
        train: resolved settings (no open defaults). taps: the student's, by name; those that the method asks for are read.
        teacher: answers per (picture, view), or None where the method reads none.
        folder: holds checkpoint.pt and history.csv (of the first process). group: the processes that share each batch. before:
            epochs that the method has behind it; its ramps and steps go on from there, while pictures, views and learning rate begin anew.
    Raises: StageError on a loss that is not finite or a process that is gone, Interrupted after Ctrl-C (a checkpoint is written first),
        UsageError for a batch too small for the method or the processes.
    """
    epochs, seed = train.epochs or 1, train.seed or 0
    smallest = max(method.smallest_batch(), schedule.smallest_batch(student, pictures.image_size, device)) * group.size
    size = schedule.batch_size(train.batch_size, len(pictures.train_index), smallest)
    steps = schedule.steps(len(pictures.train_index), size, smallest)
    saved, kept = folder / CHECKPOINT, False
    method.join(group)
    keep_freed_memory()
    unsynchronise = synchronise(group, device, train.sync_batchnorm, progress.warn if group.first else lambda _: None, student, method)
    parameters = trainable(student, method)
    optimizer = torch.optim.SGD(
        parameters, lr=train.lr or 0.0, momentum=train.momentum, nesterov=train.nesterov, weight_decay=train.weight_decay, fused=True
    )
    if train.momentum:  # from the start: fused SGD cannot add a buffer when a later stage of the method reaches a parameter first
        optimizer.state.update({p: {"momentum_buffer": torch.zeros_like(p)} for p in parameters})
    torch.manual_seed(seed)  # dropout; everything else has a stateless source
    threads_before = torch.get_num_threads()
    torch.set_num_threads(train.threads or threads_before)
    state, precision = State(), resolve_precision(train.precision, device)
    content = group.word(saved.read_bytes() if group.first and saved.is_file() else None)
    if content is not None:
        state, precision = checkpoint.load(content, saved, student, method, optimizer)
        kept = True
        progress.start_at(state.epoch, state.step)
    group.spread(student, method, done=(state.epoch - 1) * steps + state.step)
    rate, meter, begin = Rate(optimizer, device), Meter(parameters, state.epoch), time.monotonic()
    tapped = Tapped(student, {name: taps[name] for name in method.student_taps})
    stream = pictures.images if isinstance(pictures.images, Stream) else None
    step = Step(
        tapped, method, None if isinstance(pictures.images, Stream) else pictures.images, pictures.labels, pictures.augment, pictures.image_size,
        torch.tensor(normalization.mean, device=device), torch.tensor(normalization.std, device=device), teacher, optimizer, parameters, precision, group,
        traced(student, taps) if train.trace_gradients else {}, pictures.distortion,
    )  # fmt: skip
    # a traced cosine is summed like a loss: an epoch's mean over its traced steps and the processes then survives an interruption
    cosine_share = min(steps * size, len(pictures.train_index)) / -(-steps // (train.trace_gradients or 1)) / group.size
    written, learnt, classifier, hooks_off = time.monotonic(), time.monotonic(), classifier_of(student, taps), keep_layout(student)
    kernels_off, kernels = (lambda: None), TORCH
    try:
        if device == "cpu":
            kernels_off, kernels = quicker(student, pictures.image_size, train.engine)
        run = engine(train.engine, step, size, steps * epochs, classifier, progress.warn)
        with between_steps(alone=group.size == 1) as stop:
            while state.epoch <= epochs:
                begin = time.monotonic()
                student.train()
                method.train()
                method.start_epoch(before + state.epoch)
                order = schedule.order(pictures.train_index, seed, state.epoch, pictures.shards)
                view = views.views_of_epoch(
                    len(pictures.images), state.epoch, seed, pictures.augment, train.views, pictures.image_size, distorted=pictures.distortion is not None
                ).to(device)
                epoch_tensor = torch.tensor(float(before + state.epoch), device=device)
                number = torch.tensor((before + state.epoch - 1) * steps + state.step, device=device)
                meter, first, looked = Meter(parameters, state.epoch), state.step, time.monotonic()
                for at, index, known, pixels in batches(order, view, state.step, size, steps, step, stream):
                    if group.agree(stop.is_set(), at):
                        raise KeyboardInterrupt
                    rate.set(schedule.learning_rate(train, state.epoch, at / steps))
                    mine = group.share(index)
                    batch = Batch(mine, view[mine], known, epoch_tensor, number, len(index), pixels)
                    losses = step(batch, trace=True) if train.trace_gradients and at % train.trace_gradients == 0 else run(batch)
                    number += 1
                    meter.note(losses, {name: cosine_share if name in TRACED else len(mine) for name in losses}, at)
                    state.step += 1
                    progress.step(len(index), losses)
                    if state.step % LOOK == 0:
                        if time.monotonic() - looked > LOOK_SECONDS:
                            meter.check(kept=kept)
                            looked = time.monotonic()
                        if group.agree(time.monotonic() - written > SAVE_SECONDS, 0):
                            part = replace(state, sums=dict(state.sums))
                            meter.check(kept=kept)
                            _carry(part, group.total(meter.sums()), begin)
                            if group.first:
                                checkpoint.save(saved, student, method, optimizer, part, precision)
                            written, kept = time.monotonic(), True
                meter.check(kept=kept)
                _end_epoch(state, group.total(meter.sums()), student, method, pictures, normalization, train, begin, first * size, validate=group.first)
                meter, begin = Meter(parameters, state.epoch), time.monotonic()
                progress.epoch(state.history[-1])
                # The history first: a run killed between the two writes it again, one killed behind the last checkpoint would not.
                checkpoint.write_history(folder / checkpoint.HISTORY, state.history)
                if group.first:
                    checkpoint.save(saved, student, method, optimizer, state, precision)
                    if teacher is not None and time.monotonic() - learnt > SAVE_SECONDS:
                        teacher.save()
                        learnt = time.monotonic()
                group.word(None)  # the others wait here while the first process validates, not in the next step, whose messages have less time
                written, kept = time.monotonic(), True
                if group.agree(stop.is_set(), 0):  # during validation: nothing may swallow a Ctrl-C, and decoders do not wait for long
                    raise KeyboardInterrupt
        if teacher is not None and group.size > 1:
            teacher.merge(group.gather)
    except KeyboardInterrupt:  # in every process at the same step
        sums = group.total(meter.sums())
        if meter.bad() is None:
            kept = True
            if group.first:
                _carry(state, sums, begin)
                checkpoint.save(saved, student, method, optimizer, state, precision)
        there = "checkpoint kept" if kept else "there is no checkpoint yet"
        raise Interrupted(f"interrupted in epoch {min(state.epoch, epochs)} of {epochs}, {there}; {resume_hint}") from None
    finally:
        threads = torch.get_num_threads()
        torch.set_num_threads(threads_before)
        tapped.close()
        hooks_off()
        kernels_off()
        release(classifier)
        optimizer.zero_grad(set_to_none=True)  # what is trained ships without them, and a recording's memory goes with them
        unsynchronise()
        method.join(ALONE)
        if stream is not None:
            stream.close()
        if teacher is not None and group.first:
            teacher.save()
    shipped = epochs
    if train.keep == "best" and state.best is not None:
        student.load_state_dict(state.best["student"])
        method.load_state_dict(state.best["method"])
        shipped = state.best["epoch"]
    seen = min(steps * size, len(pictures.train_index)) * len(state.history)
    return Fitted(state.history, state.seconds, seen / max(state.seconds, 1e-9), precision, threads, kernels, shipped)


def _carry(state: State, sums: dict[str, float], begin: float) -> None:
    """Move a part of an epoch into the state, for a checkpoint in its middle."""
    for name, value in sums.items():
        state.sums[name] = state.sums.get(name, 0.0) + value
    state.seconds += time.monotonic() - begin


def _end_epoch(
    state: State,
    sums: dict[str, float],
    student: nn.Module,
    method: Method,
    pictures: Pictures,
    normalization: Normalization,
    train: Train,
    begin: float,
    before: int,
    *,
    validate: bool = True,
) -> None:
    """Validate, add the epoch's row, keep the best, move to the next epoch. `before`: pictures of this epoch that an earlier process saw."""
    rate = schedule.learning_rate(train, state.epoch, 0.0)
    trained_seconds = time.monotonic() - begin
    _carry(state, sums, begin)
    count = min(state.step * train.batch_size, len(pictures.train_index))
    row: dict[str, float] = {"epoch": state.epoch, "lr": rate, **{name: value / count for name, value in state.sums.items()}}
    if len(pictures.validation_index) and validate:
        logits = predict(method.deployed(student), pictures.validation(), pictures.image_size, normalization, device=pictures.labels.device)
        row["top1_validation"] = accuracy(logits, pictures.labels[pictures.validation_index])
    row["images_per_second"] = round((count - before) / max(trained_seconds, 1e-9), 1)
    state.history.append(row)
    if train.keep == "best" and row.get("top1_validation", 0.0) >= (state.best or {"top1": -1.0})["top1"]:
        copies = [{name: value.detach().clone() for name, value in module.state_dict().items()} for module in (student, method)]
        state.best = {"top1": row.get("top1_validation", 0.0), "epoch": state.epoch, "student": copies[0], "method": copies[1]}
    state.sums, state.step = {}, 0
    state.epoch += 1
