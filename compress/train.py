"""The training loop: one student, one method, data on the device, resumable at every step.

Order of pictures, views and learning rate are pure functions of (seed, epoch, step), so a checkpoint is the networks, the optimizer,
the step and the random state: a killed run goes on and ends with the same bits (same thread count, CPU).
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from compress import checkpoint
from compress.checkpoint import State
from compress.data import views
from compress.errors import Interrupted, StageError, UsageError
from compress.gradients import aligned_backward, sum_backward
from compress.methods import Method, Signals
from compress.models.taps import Tapped
from compress.results import Normalization
from compress.schema import Train
from compress.teacher_cache import TeacherCache


class Progress(Protocol):
    """What the loop tells while it runs."""

    def start_at(self, epoch: int, step: int) -> None: ...
    def step(self, images: int, losses: dict[str, Tensor]) -> None: ...
    def epoch(self, row: dict[str, float]) -> None: ...


@dataclass(frozen=True)
class Pictures:
    """Training pictures on the device: uint8 (N, S, S, 3) prepared for views, labels (N,) int64, and the two index sets."""

    images: Tensor
    labels: Tensor
    train_index: Tensor
    validation_index: Tensor
    augment: str
    image_size: int


@dataclass(frozen=True)
class Fitted:
    """What training was. `history` is one row an epoch; the networks were changed in place."""

    history: list[dict[str, float]]
    seconds: float
    images_per_second: float
    precision: str
    threads: int
    shipped_epoch: int


def learning_rate(train: Train, epoch: int, progress: float) -> float:
    """The rate at a point of training: 1-based `epoch`, `progress` in [0, 1) within it.

    step: x gamma for every milestone m with epoch > m, as in the papers' code (the first reduced epoch of 150 is 151).
    cosine: lr/2 (1 + cos(pi t)), t the share of training done after warm-up. warm-up: linear from 0.
    """
    assert train.lr is not None and train.epochs is not None  # resolved by recipe.resolve
    schedule, done = train.schedule, epoch - 1 + progress
    warmup = schedule.warmup_epochs or 0.0
    if done < warmup:
        return train.lr * done / warmup
    if schedule.kind == "step":
        return train.lr * schedule.gamma ** sum(epoch > milestone for milestone in schedule.milestones)
    if schedule.kind == "cosine":
        return train.lr / 2 * (1 + math.cos(math.pi * (done - warmup) / max(train.epochs - warmup, 1e-9)))
    return train.lr


def resolve_precision(precision: str, device: str, *, depthwise: bool) -> str:
    """`auto` by CPU flags and network, never by a clock: bf16 pays for dense convolutions on a CPU with bf16 units, and on CUDA."""
    if precision != "auto":
        return precision
    if device.startswith("cuda"):
        return "bf16"
    return "bf16" if not depthwise and _cpu_has_bf16() else "float32"


def _cpu_has_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def autocast(device: str, precision: str) -> AbstractContextManager[Any]:
    """Autocast to bfloat16, or nothing for float32."""
    return torch.autocast(device.split(":")[0], torch.bfloat16) if precision == "bf16" else nullcontext()


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, image_size: int, normalization: Normalization, *, batch_size: int = 250) -> Tensor:
    """Float32 logits (N, K) of stored uint8 pictures (N, S, S, 3) through the evaluation view; the model's mode is kept."""
    training = model.training
    model.eval()
    out = []
    for begin in range(0, len(images), batch_size):
        pixels = views.evaluation_view(images[begin : begin + batch_size], image_size)
        out.append(model(views.to_float(pixels, normalization.mean, normalization.std)).float())
    model.train(training)
    return torch.cat(out)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Top-1 as a fraction."""
    return float((logits.argmax(dim=1) == labels).double().mean())


def fit(
    student: nn.Module,
    method: Method,
    pictures: Pictures,
    *,
    train: Train,
    normalization: Normalization,
    pooled: str,
    depthwise: bool,
    teacher: TeacherCache | None,
    device: str,
    folder: Path,
    progress: Progress,
    resume_hint: str = "run the same command again to resume",
) -> Fitted:
    """Train `student` and `method` in place; resume from `folder/checkpoint.pt` where there is one.

    Args:
        train: resolved settings (no open defaults). pooled: tap of the classifier's input. depthwise: see `resolve_precision`.
        teacher: answers logits per (picture, view), or None where the method reads none.
        folder: holds checkpoint.pt and history.csv.
    Raises: StageError on a loss that is not finite, Interrupted after Ctrl-C (a checkpoint is written first),
        UsageError for a batch too small for the method.
    """
    epochs, seed = train.epochs or 1, train.seed or 0
    smallest = max(method.smallest_batch(), _smallest_batch(student, pictures.image_size, device))
    size = _batch_size(train.batch_size, len(pictures.train_index), smallest)
    steps = _steps(len(pictures.train_index), size, smallest)
    saved = folder / "checkpoint.pt"
    parameters = [p for p in (*student.parameters(), *method.parameters()) if p.requires_grad]
    optimizer = torch.optim.SGD(
        parameters, lr=train.lr or 0.0, momentum=train.momentum, nesterov=train.nesterov, weight_decay=train.weight_decay, fused=True
    )
    torch.manual_seed(seed)  # dropout; everything else has a stateless source
    threads_before = torch.get_num_threads()
    torch.set_num_threads(train.threads or threads_before)
    state, precision = State(), resolve_precision(train.precision, device, depthwise=depthwise)
    if saved.is_file():
        state, precision = checkpoint.load(saved, student, method, optimizer)
        progress.start_at(state.epoch, state.step)
    finite, sums, begin = _Finite(device), dict[str, Tensor](), time.monotonic()
    tapped = Tapped(student, {name: pooled for name in method.student_taps})
    try:
        with _between_steps() as stop:
            while state.epoch <= epochs:
                begin = time.monotonic()
                student.train()
                method.train()
                order = _order(pictures.train_index, seed, state.epoch)
                view = views.views_of_epoch(len(pictures.images), state.epoch, seed, pictures.augment, train.views, pictures.image_size).to(device)
                epoch_tensor = torch.tensor(float(state.epoch), device=device)
                sums = {}
                while state.step < steps:
                    if stop.is_set():
                        raise KeyboardInterrupt
                    index = order[state.step * size : (state.step + 1) * size]
                    for group in optimizer.param_groups:
                        group["lr"] = learning_rate(train, state.epoch, state.step / steps)
                    losses = _step(
                        tapped, method, pictures, index, view[index], epoch_tensor, normalization, teacher, optimizer, parameters, device, precision
                    )
                    finite.note(losses, state.step)
                    for name, loss in losses.items():
                        sums[name] = sums.get(name, torch.zeros((), device=device)) + loss.detach() * len(index)
                    state.step += 1
                    progress.step(len(index), {name: loss.detach() for name, loss in losses.items()})
                    if state.step % 50 == 0:
                        finite.check(state.epoch, folder)
                finite.check(state.epoch, folder)
                _end_epoch(state, sums, student, method, pictures, normalization, train, begin, size * steps)
                sums = {}
                progress.epoch(state.history[-1])
                # The history first: a run killed between the two writes it again, one killed behind the last checkpoint would not.
                checkpoint.write_history(folder / checkpoint.HISTORY, state.history)
                checkpoint.save(saved, student, method, optimizer, state, precision)
            if stop.is_set():  # during the last validation: nothing may swallow a Ctrl-C
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        if not finite.bad():
            _carry(state, sums, begin)
            checkpoint.save(saved, student, method, optimizer, state, precision)
        raise Interrupted(f"interrupted in epoch {min(state.epoch, epochs)} of {epochs}, checkpoint kept; {resume_hint}") from None
    finally:
        threads = torch.get_num_threads()
        torch.set_num_threads(threads_before)
        tapped.close()
        if teacher is not None:
            teacher.save()
    shipped = epochs
    if train.keep == "best" and state.best is not None:
        student.load_state_dict(state.best["student"])
        method.load_state_dict(state.best["method"])
        shipped = state.best["epoch"]
    seen = len(pictures.train_index) * len(state.history)
    return Fitted(state.history, state.seconds, seen / max(state.seconds, 1e-9), precision, threads, shipped)


def _step(
    tapped: Tapped,
    method: Method,
    pictures: Pictures,
    index: Tensor,
    view: Tensor,
    epoch: Tensor,
    normalization: Normalization,
    teacher: TeacherCache | None,
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    device: str,
    precision: str,
) -> dict[str, Tensor]:
    """One batch: pictures (B,) by index and view -> losses; the weights are stepped."""
    raw = views.apply_views(pictures.images, index, view, pictures.augment, pictures.image_size)
    pixels = views.to_float(raw, normalization.mean, normalization.std)
    teacher_logits = teacher(index, view, raw) if teacher is not None else None
    with autocast(device, precision):
        logits, taps = tapped(pixels)
    # Distillation losses live in float32: bf16 makes small differences of logits vanish.
    taps = {name: tap.float() for name, tap in taps.items()}
    losses = method(Signals(pictures.labels[index], index, epoch, logits.float(), teacher_logits, taps))
    optimizer.zero_grad(set_to_none=True)
    names = list(losses)
    aligned = [losses[name] for name in names if name in method.aligned]
    if aligned:
        free = [losses[name] for name in names[1:] if name not in method.aligned]
        aligned_backward(
            losses[names[0]], sum(aligned[1:], aligned[0]), parameters, scope=method.scope, free=sum(free[1:], free[0]) if free else None
        )
    else:
        sum_backward([losses[name] for name in names], parameters)
    optimizer.step()
    return losses


@contextmanager
def _between_steps() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM set an event that the loop reads between two steps: never half a step in a checkpoint."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Finite:
    """Latches the first step with a loss that is not finite, without stopping the device at every step."""

    def __init__(self, device: str) -> None:
        self.step = torch.full((), -1, dtype=torch.int64, device=device)
        self.losses: dict[str, Tensor] = {}

    def note(self, losses: dict[str, Tensor], step: int) -> None:
        total = torch.stack([loss.detach().double() for loss in losses.values()])
        broken = (~torch.isfinite(total)).any() & (self.step < 0)
        self.step = torch.where(broken, torch.full_like(self.step, step), self.step)
        for name, loss in losses.items():
            self.losses[name] = torch.where(broken | (self.step < 0), loss.detach(), self.losses.get(name, loss.detach()))

    def bad(self) -> bool:
        return int(self.step) >= 0

    def check(self, epoch: int, folder: Path) -> None:
        if self.bad():
            values = ", ".join(f"{name} {float(loss):.4g}" for name, loss in self.losses.items())
            kept = "the last good checkpoint is kept" if (folder / "checkpoint.pt").is_file() else "there is no checkpoint yet"
            raise StageError(
                f"the loss is not finite in epoch {epoch}, step {int(self.step) + 1} ({values}); {kept}: lower train.lr or the loss's weight"
            )


@torch.no_grad()
def _smallest_batch(student: nn.Module, image_size: int, device: str) -> int:
    """2 where a BatchNorm of the network sees a single value a channel of one picture (maps of one pixel), else 1."""
    values: list[int] = []
    layers = [module for module in student.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    hooks = [layer.register_forward_pre_hook(lambda _, args: values.append(args[0][0, 0].numel())) for layer in layers]
    student.eval()
    student(torch.zeros(1, 3, image_size, image_size, device=device))
    for hook in hooks:
        hook.remove()
    return 2 if 1 in values else 1


def _batch_size(size: int, pictures: int, smallest: int) -> int:
    if min(size, pictures) < smallest:
        raise UsageError(f"train.batch_size: batches of at least {smallest} are needed, got {min(size, pictures)} (BatchNorm over one value)")
    return min(size, pictures)


def _steps(pictures: int, size: int, smallest: int) -> int:
    """Batches an epoch; a last batch too small for the method waits for another epoch's order."""
    full, rest = divmod(pictures, size)
    return full + (rest >= max(smallest, 1) and rest > 0)


def _order(index: Tensor, seed: int, epoch: int) -> Tensor:
    """The epoch's order of pictures, a function of seed and epoch alone."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return index[torch.randperm(len(index), generator=generator).to(index.device)]


def _carry(state: State, sums: dict[str, Tensor], begin: float) -> None:
    """Move a part of an epoch into the state, for a checkpoint in its middle."""
    for name, value in sums.items():
        state.sums[name] = state.sums.get(name, 0.0) + float(value)
    state.seconds += time.monotonic() - begin


def _end_epoch(
    state: State,
    sums: dict[str, Tensor],
    student: nn.Module,
    method: Method,
    pictures: Pictures,
    normalization: Normalization,
    train: Train,
    begin: float,
    seen: int,
) -> None:
    """Validate, add the epoch's row, keep the best, move to the next epoch."""
    rate = learning_rate(train, state.epoch, 0.0)
    trained_seconds = time.monotonic() - begin
    _carry(state, sums, begin)
    count = min(seen, len(pictures.train_index))
    row: dict[str, float] = {"epoch": state.epoch, "lr": rate, **{name: value / count for name, value in state.sums.items()}}
    if len(pictures.validation_index):
        logits = predict(student, pictures.images[pictures.validation_index], pictures.image_size, normalization)
        row["top1_validation"] = accuracy(logits, pictures.labels[pictures.validation_index])
    row["images_per_second"] = round(count / max(trained_seconds, 1e-9), 1)
    state.history.append(row)
    if train.keep == "best" and row.get("top1_validation", 0.0) >= (state.best or {"top1": -1.0})["top1"]:
        copies = [{name: value.detach().clone() for name, value in module.state_dict().items()} for module in (student, method)]
        state.best = {"top1": row.get("top1_validation", 0.0), "epoch": state.epoch, "student": copies[0], "method": copies[1]}
    state.sums, state.step = {}, 0
    state.epoch += 1
