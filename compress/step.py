"""One training step: views, teacher, student, losses, gradients, optimizer. Run as it is, or recorded once as a CUDA graph and replayed.

Nothing in a step waits for the device, so that a step of a small network, which a CPU cannot launch as fast as a GPU computes it, can be
one graph: what changes from step to step (pictures, views, learning rate, epoch) stands in tensors that keep their place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from compress.data import views
from compress.distributed import Group
from compress.gradients import aligned_backward, cosine, sum_backward
from compress.losses.precision import wide
from compress.methods import Method, Signals
from compress.models.taps import Tapped
from compress.precision import autocast

TRACED = ("cos_classifier", "cos_backbone")
WARM_UP = 3  # steps before a graph is recorded: they choose kernels and make the optimizer's state


class Teaching(Protocol):
    """What a method is taught by: a memory of logits, or a network."""

    def ahead(self, index: Tensor, view: Tensor, pixels: Callable[[Tensor, Tensor], Tensor]) -> Tensor | None:
        """Logits float16 (M, K) of steps to come, where they can be had without the step; else None."""

    def answer(self, known: Tensor | None, pixels: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Teacher's logits (N, K) and maps by name, float32, of a batch of pixels uint8 (N, H, W, 3); `known`: what `ahead` said of it."""

    def merge(self, gather: Callable[[Tensor], Tensor]) -> None:
        """Learn what other processes know."""

    def save(self) -> None:
        """Keep what later runs may use."""


@dataclass(frozen=True)
class Batch:
    """This process's share of a batch. index, view int64 (N,); known float16 (N, K) or None; epoch, step: see `Signals`; total: whole batch.

    pixels: the views uint8 (N, H, W, 3) where they are decoded already; None: the step makes them.
    """

    index: Tensor
    view: Tensor
    known: Tensor | None
    epoch: Tensor
    step: Tensor
    total: int
    pixels: Tensor | None = None


@dataclass(frozen=True)
class Step:
    """Everything that a step works on. images uint8 (P, S, S, 3) or None (batches bring their pixels), labels (P,); mean, std float32 (3,), on the device."""

    tapped: Tapped
    method: Method
    images: Tensor | None
    labels: Tensor
    augment: str
    image_size: int
    mean: Tensor
    std: Tensor
    teacher: Teaching | None
    optimizer: torch.optim.Optimizer
    parameters: Sequence[Tensor]
    precision: str
    group: Group
    traced: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)

    def pixels(self, index: Tensor, view: Tensor) -> Tensor:
        """uint8 (N, H, W, 3) of pictures and views (N,)."""
        assert self.images is not None
        return views.apply_views(self.images, index, view, self.augment, self.image_size)

    def __call__(self, batch: Batch, *, trace: bool = False) -> dict[str, Tensor]:
        """Step the weights; the losses by name, without gradient, means over this process's pictures.

        `trace`: and the cosines between the first loss's gradient and that of the others, over each of the `traced` groups that both reach.
        """
        raw = self.pixels(batch.index, batch.view) if batch.pixels is None else batch.pixels
        teacher_logits, teacher_taps = self.teacher.answer(batch.known, raw) if self.teacher is not None else (None, {})
        with autocast(str(raw.device), self.precision):
            logits, taps = self.tapped(views.to_float(raw, self.mean, self.std))
        # Distillation losses live in float32: bf16 makes small differences of logits vanish.
        taps = {name: wide(tap) for name, tap in taps.items()}
        signals = Signals(self.labels[batch.index], batch.index, batch.epoch, wide(logits), teacher_logits, taps, teacher_taps, batch.step)
        losses = self.method(signals)
        self.optimizer.zero_grad(set_to_none=True)
        cosines = self._cosines(list(losses.values())) if trace else {}
        self._backward(losses, self.group.averaging(len(batch.index), batch.total))
        self.optimizer.step()
        return {**{name: loss.detach() for name, loss in losses.items()}, **cosines}

    def _cosines(self, losses: list[Tensor]) -> dict[str, Tensor]:
        if len(losses) < 2:
            return {}
        found = {name: cosine(losses[0], torch.stack(losses[1:]).sum(), group) for name, group in self.traced.items()}
        return {name: value for name, value in found.items() if value is not None}

    def _backward(self, losses: dict[str, Tensor], reduce: Callable[[list[Tensor]], None] | None) -> None:
        names, method = list(losses), self.method
        aligned = [losses[name] for name in names if name in method.aligned]
        if not aligned:
            sum_backward([losses[name] for name in names], self.parameters, reduce=reduce)
            return
        free = [losses[name] for name in names[1:] if name not in method.aligned]
        aligned_backward(
            losses[names[0]], sum(aligned[1:], aligned[0]), self.parameters, scope=method.scope,
            free=sum(free[1:], free[0]) if free else None, reduce=reduce,
        )  # fmt: skip


class Recorded:
    """A step as a CUDA graph. The first steps, and batches of another size, run as they are.

    `warn` is told once where recording fails; then all steps run as they are. `count`: replayed steps, for a test.
    """

    def __init__(self, step: Step, size: int, warn: Callable[[str], None]) -> None:
        self.step, self.size, self.warn = step, size, warn
        self.graph: torch.cuda.CUDAGraph | None = None
        self.batch: Batch | None = None
        self.losses: dict[str, Tensor] = {}
        self.eager, self.phase, self.failed, self.count = 0, None, False, 0

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """See `Step`."""
        if self.failed or len(batch.index) != self.size:
            return self.step(batch)
        phase: Any = self.step.method.phase
        if phase != self.phase:  # another phase computes other losses
            self.graph, self.eager, self.phase = None, 0, phase
        if self.eager < WARM_UP:
            self.eager += 1
            return self._beside(batch)
        if self.graph is None and not self._record(batch):
            return self.step(batch)
        assert self.graph is not None and self.batch is not None
        for name in ("index", "view", "known", "epoch", "step", "pixels"):
            kept, new = getattr(self.batch, name), getattr(batch, name)
            if kept is not None:
                kept.copy_(new)
        self.graph.replay()
        self.count += 1
        return {name: loss.clone() for name, loss in self.losses.items()}

    def _beside(self, batch: Batch) -> dict[str, Tensor]:
        """On a stream of its own: what a warm-up allocates must not be tied to the default stream."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            losses = self.step(batch)
        torch.cuda.current_stream().wait_stream(stream)
        return losses

    def _record(self, batch: Batch) -> bool:
        """Record, which computes nothing. False where it fails."""
        known, pixels = (None if value is None else value.clone() for value in (batch.known, batch.pixels))
        kept = replace(batch, index=batch.index.clone(), view=batch.view.clone(), epoch=batch.epoch.clone(), step=batch.step.clone())
        self.batch = replace(kept, known=known, pixels=pixels)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.losses = self.step(self.batch)
        except RuntimeError as error:
            self.failed = True
            self.warn(f"train.engine: this step cannot be recorded as a CUDA graph ({str(error).strip().splitlines()[0]}); it runs as it is, slower")
            return False
        self.graph = graph
        return True


class Rate:
    """The optimizer's learning rate: a number on the CPU; on CUDA a tensor that keeps its place, for a recorded step reads it."""

    def __init__(self, optimizer: torch.optim.Optimizer, device: str) -> None:
        self.groups = optimizer.param_groups
        self.tensor = torch.zeros((), device=device) if device.startswith("cuda") else None
        for group in self.groups if self.tensor is not None else ():
            group["lr"] = self.tensor

    def set(self, value: float) -> None:
        """For the next step."""
        if self.tensor is not None:
            self.tensor.fill_(value)
            return
        for group in self.groups:
            group["lr"] = value


def engine(name: str, step: Step, size: int, warn: Callable[[str], None]) -> Callable[[Batch], dict[str, Tensor]]:
    """How steps run. `auto`: recorded on CUDA where the method allows it, else as they are. Raises ValueError for an unknown name."""
    if name not in ("auto", "eager"):
        raise ValueError(f"engine must be 'auto' or 'eager', got {name!r}")
    recordable = step.labels.is_cuda and step.method.recordable and step.group.size == 1
    return Recorded(step, size, warn) if name == "auto" and recordable else step


def trainable(*modules: nn.Module) -> list[Tensor]:
    """What the optimizer steps."""
    return [p for module in modules for p in module.parameters() if p.requires_grad]


def traced(student: nn.Module, taps: Mapping[str, str]) -> dict[str, Sequence[Tensor]]:
    """The student's parameters in two groups: the classifier block, which reads the pooled vector, and all before it."""
    head = trainable(student.get_submodule(taps["pooled"].split(":")[0]))
    known = {id(parameter) for parameter in head}
    return dict(zip(TRACED, (head, [parameter for parameter in trainable(student) if id(parameter) not in known]), strict=True))
