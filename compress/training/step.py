"""One training step: views, teacher, student, losses, gradients, optimizer. How it is run says `engine.py`.

Nothing in a step waits for the device, so that it can be recorded once and replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from compress.core.distributed import Group
from compress.core.records.training import Distortion
from compress.data.augment import views
from compress.data.augment.distort import distort_views
from compress.methods import Method, Signals
from compress.methods.losses.upcast import upcast
from compress.training.engine.autograd_reach import ReachableParameters
from compress.training.gradients import aligned_backward, cosine, sum_backward
from compress.training.precision import autocast

TRACED = ("cos_classifier", "cos_backbone")


class TeacherSource(Protocol):
    """What a method is taught by: a memory of logits, or a network. `recordable`: `answer`, as this training asks it, stays on the device.

    `prefetch_limit`: pictures that it may be asked for ahead at once, where that is more than a window's (`batches.PREFETCH_STEPS`).
    """

    @property
    def recordable(self) -> bool: ...

    @property
    def prefetch_limit(self) -> int: ...

    def prefetch_logits(self, index: Tensor, view: Tensor, pixels: Callable[[Tensor, Tensor], Tensor]) -> Tensor | None:
        """Logits float16 (M, K) of steps to come, where they can be had without the step; else None."""

    def forward(self, cached_logits: Tensor | None, pixels: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Teacher's logits (N, K) and maps by name, float32, of a batch of pixels uint8 (N, H, W, 3); `known`: what `ahead` said of it."""

    def merge(self, gather: Callable[[Tensor], Tensor]) -> None:
        """Learn what other processes know."""

    def save(self) -> None:
        """Keep what later runs may use."""


@dataclass(frozen=True)
class Batch:
    """This process's share of a batch. index, view int64 (N,); known float16 (N, K) or None; epoch, step: see `Signals`; total: whole batch.

    pixels: the views uint8 (N, H, W, 3) where they are there already, cropped and flipped but not distorted; None: the step makes them.
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
    """Everything that a step works on. images uint8 (P, S, S, 3) or None (batches bring their pixels), labels (P,); mean, std float32 (3,), on the device.

    network: float32 (N, 3, S, S) -> logits and maps by name, a `Tapped` or what was compiled of it; `reach`, with the latter alone: what its losses reach.
    distortion: of all views, those that a batch brings included.
    """

    network: Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]
    method: Method
    images: Tensor | None
    labels: Tensor
    augment: str
    image_size: int
    mean: Tensor
    std: Tensor
    teacher: TeacherSource | None
    optimizer: torch.optim.Optimizer
    parameters: Sequence[Tensor]
    precision: str
    group: Group
    traced: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)
    distortion: Distortion | None = None
    reach: ReachableParameters | None = None

    def cut(self, index: Tensor, view: Tensor) -> Tensor:
        """uint8 (N, H, W, 3) of pictures and views (N,), cropped and flipped but not distorted."""
        assert self.images is not None
        return views.apply_views(self.images, index, view, self.augment, self.image_size)

    def pixels(self, index: Tensor, view: Tensor) -> Tensor:
        """uint8 (N, H, W, 3) of pictures and views (N,)."""
        return distort_views(self.cut(index, view), view, self.distortion)

    def student(self, raw: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The student's logits and maps of pixels uint8 (N, H, W, 3), in the training's precision."""
        with autocast(str(raw.device), self.precision):
            return self.network(views.to_float(raw, self.mean, self.std))

    def __call__(self, batch: Batch, *, trace: bool = False) -> dict[str, Tensor]:
        """Step the weights; the losses by name, without gradient, means over this process's pictures.

        `trace`: and the cosines between the first loss's gradient and that of the others, over each of the `traced` groups that both reach.
        """
        raw = (
            self.pixels(batch.index, batch.view)
            if batch.pixels is None
            else distort_views(batch.pixels, batch.view, self.distortion)
        )
        teacher_logits, teacher_taps = (
            self.teacher.forward(batch.known, raw) if self.teacher is not None else (None, {})
        )
        logits, taps = self.student(raw)
        outputs = [logits, *taps.values()]
        # Distillation losses live in float32: bf16 makes small differences of logits vanish.
        taps = {name: upcast(tap) for name, tap in taps.items()}
        signals = Signals(
            self.labels[batch.index],
            batch.index,
            batch.epoch,
            upcast(logits),
            teacher_logits,
            taps,
            teacher_taps,
            batch.step,
        )
        losses = self.method(signals)
        self.optimizer.zero_grad(set_to_none=True)
        cosines = self._cosines(list(losses.values())) if trace else {}
        self._backward(
            self.group.scale_losses(losses, len(batch.index), batch.total), self.group.gradient_reducer, outputs
        )
        self.optimizer.step()
        return {**{name: loss.detach() for name, loss in losses.items()}, **cosines}

    def _cosines(self, losses: list[Tensor]) -> dict[str, Tensor]:
        if len(losses) < 2:
            return {}
        found = {name: cosine(losses[0], torch.stack(losses[1:]).sum(), group) for name, group in self.traced.items()}
        return {name: value for name, value in found.items() if value is not None}

    def _backward(
        self, losses: dict[str, Tensor], reduce: Callable[[list[Tensor]], None] | None, outputs: Sequence[Tensor]
    ) -> None:
        names, method = list(losses), self.method
        aligned = [losses[name] for name in names if name in method.aligned]
        free = [losses[name] for name in names[1:] if name not in method.aligned]
        parts = [
            sum(some[1:], some[0])
            for some in ([[losses[names[0]]], aligned, free] if aligned else [list(losses.values())])
            if some
        ]
        reached = None if self.reach is None else self.reach.masks(method.phase, parts, outputs)
        if aligned:
            task, auxiliary, *others = parts
            aligned_backward(
                task,
                auxiliary,
                self.parameters,
                scope=method.scope,
                free=others[0] if others else None,
                reduce=reduce,
                reached=reached,
            )
            return
        sum_backward(
            parts,
            self.parameters
            if reached is None
            else [p for p, there in zip(self.parameters, reached[0], strict=True) if there],
            reduce=reduce,
        )


def trainable(*modules: nn.Module) -> list[Tensor]:
    """What the optimizer steps."""
    return [p for module in modules for p in module.parameters() if p.requires_grad]


def sgd(
    parameters: Sequence[Tensor], *, lr: float, momentum: float, weight_decay: float, nesterov: bool = False
) -> torch.optim.SGD:
    """The optimizer of every training, in one operator for all parameters."""
    optimizer = torch.optim.SGD(
        parameters, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, fused=True
    )
    if (
        momentum
    ):  # from the start: fused SGD cannot add a buffer when a later stage of the method reaches a parameter first
        optimizer.state.update({p: {"momentum_buffer": torch.zeros_like(p)} for p in parameters})
    return optimizer


def traced(student: nn.Module, taps: Mapping[str, str]) -> dict[str, Sequence[Tensor]]:
    """The student's parameters in two groups: the classifier block, which reads the pooled vector, and all before it."""
    head = trainable(student.get_submodule(taps["pooled"].split(":")[0]))
    known = {id(parameter) for parameter in head}
    return dict(
        zip(TRACED, (head, [parameter for parameter in trainable(student) if id(parameter) not in known]), strict=True)
    )
