"""One training step: views, teacher, student, losses, gradients, optimizer. See `engine/` for how steps are executed.

Nothing in a step waits for the device, so that a step can be recorded once and replayed.
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
from compress.training.optimization import MovingAverage
from compress.training.precision import autocast

# Names of the cosines that a traced step adds to its losses, one for each of the `parameter_groups`.
COSINES = ("cos_classifier", "cos_backbone")


class TeacherSource(Protocol):
    """Gives a method the teacher's signals: a cache of logits, or the network itself."""

    @property
    def recordable(self) -> bool:
        """Whether `forward` stays on the device as this training calls it, so that a step can be recorded."""

    @property
    def prefetch_limit(self) -> int:
        """How many images to prefetch per call, where that is more than `batches.PREFETCH_STEPS` of them hold."""

    def prefetch_logits(self, index: Tensor, view: Tensor, pixels: Callable[[Tensor, Tensor], Tensor]) -> Tensor | None:
        """Return the logits of coming steps, float16 (M, K), or None where the teacher runs within each step.

        Args:
            index: images, int64 (M,).
            view: their views, int64 (M,).
            pixels: maps index and view (B,) to uint8 (B, H, W, 3).
        """

    def forward(self, cached_logits: Tensor | None, pixels: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Return a batch's logits (N, K), None where no loss reads them, and its maps by name, all float32.

        Args:
            cached_logits: what `prefetch_logits` returned for the batch, float16 (N, K), or None.
            pixels: uint8 (N, H, W, 3).
        """

    def merge(self, gather: Callable[[Tensor], Tensor]) -> None:
        """Add the logits that the other ranks have computed. `gather` maps one rank's rows to those of all ranks."""

    def save(self) -> None:
        """Write to disk what later runs can use."""


@dataclass(frozen=True)
class Batch:
    """This rank's share of a batch of N images.

    Attributes:
        index: images, int64 (N,).
        view: their views, int64 (N,).
        cached_teacher_logits: float16 (N, K), or None where the teacher runs within the step.
        epoch: see `Signals`.
        step: see `Signals`.
        total: images of the whole batch, over all ranks.
        pixels: the views, uint8 (N, H, W, 3), cropped and flipped but not distorted; None where the step makes them.
    """

    index: Tensor
    view: Tensor
    cached_teacher_logits: Tensor | None
    epoch: Tensor
    step: Tensor
    total: int
    pixels: Tensor | None = None


@dataclass(frozen=True)
class Step:
    """Everything a step works on, on one device.

    Attributes:
        network: float32 (N, 3, S, S) -> logits and maps by name: a `Tapped` network, or one compiled from it.
        images: uint8 (P, S, S, 3), or None where batches bring their pixels.
        labels: int64 (P,).
        mean: float32 (3,).
        std: float32 (3,).
        parameters: everything that the optimizer steps.
        traced: parameters by name of the cosine that is computed over them.
        distortion: applied to all views, also to those that a batch brings.
        crop_scale: of views that the step cuts, see `views.crop_boxes`.
        reach: which parameters the losses reach; only a compiled network needs it.
        clip_norm: the largest norm of the gradient over all parameters; None: any.
        average: of the parameters, moved after each step.
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
    crop_scale: tuple[float, float] | None = None
    reach: ReachableParameters | None = None
    clip_norm: float | None = None
    average: MovingAverage | None = None

    def crop(self, index: Tensor, view: Tensor) -> Tensor:
        """Return the views (N,) of images (N,) as uint8 (N, H, W, 3), cropped and flipped but not distorted."""
        assert self.images is not None
        return views.apply_views(self.images, index, view, self.augment, self.image_size, scale=self.crop_scale)

    def pixels(self, index: Tensor, view: Tensor) -> Tensor:
        """Return the views (N,) of images (N,) as uint8 (N, H, W, 3)."""
        return distort_views(self.crop(index, view), view, self.distortion)

    def student(self, raw: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the student's logits and maps of pixels uint8 (N, H, W, 3), in the training's precision."""
        with autocast(str(raw.device), self.precision):
            return self.network(views.to_float(raw, self.mean, self.std))

    def __call__(self, batch: Batch, *, trace: bool = False) -> dict[str, Tensor]:
        """Take one step.

        Args:
            batch: this rank's share of the batch.
            trace: also compute the cosines between the first loss's gradient and that of the others, over the
                parameters of each `traced` group that both reach.

        Returns:
            The losses by name, and the cosines: means over this rank's images, detached.
        """
        if batch.pixels is None:
            raw = self.pixels(batch.index, batch.view)
        else:
            raw = distort_views(batch.pixels, batch.view, self.distortion)
        teacher_logits: Tensor | None = None
        teacher_taps: dict[str, Tensor] = {}
        if self.teacher is not None:
            teacher_logits, teacher_taps = self.teacher.forward(batch.cached_teacher_logits, raw)
        logits, taps = self.student(raw)
        outputs = [logits, *taps.values()]
        # Distillation losses are computed in float32: small differences of logits vanish in bfloat16.
        taps = {name: upcast(tap) for name, tap in taps.items()}
        signals = Signals(
            labels=self.labels[batch.index],
            index=batch.index,
            epoch=batch.epoch,
            student_logits=upcast(logits),
            teacher_logits=teacher_logits,
            student=taps,
            teacher=teacher_taps,
            step=batch.step,
        )
        losses = self.method(signals)
        self.optimizer.zero_grad(set_to_none=True)
        cosines = self._cosines(list(losses.values())) if trace else {}
        self._backward(
            self.group.scale_losses(losses, len(batch.index), batch.total), self.group.gradient_reducer, outputs
        )
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(batch.step)
        return {**{name: loss.detach() for name, loss in losses.items()}, **cosines}

    def _cosines(self, losses: list[Tensor]) -> dict[str, Tensor]:
        if len(losses) < 2:
            return {}
        found = {name: cosine(losses[0], torch.stack(losses[1:]).sum(), group) for name, group in self.traced.items()}
        return {name: value for name, value in found.items() if value is not None}

    def _backward(
        self, losses: dict[str, Tensor], reduce: Callable[[list[Tensor]], None] | None, outputs: Sequence[Tensor]
    ) -> None:
        """Set the parameters' gradients: the sum of all losses', with the method's aligned losses projected."""
        names, method = list(losses), self.method
        aligned = [losses[name] for name in names if name in method.aligned]
        free = [losses[name] for name in names[1:] if name not in method.aligned]
        terms = [[losses[names[0]]], aligned, free] if aligned else [list(losses.values())]
        parts = [sum(some[1:], some[0]) for some in terms if some]
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
        parameters = self.parameters
        if reached is not None:
            parameters = [parameter for parameter, wanted in zip(parameters, reached[0], strict=True) if wanted]
        sum_backward(parts, parameters, reduce=reduce)


def trainable(*modules: nn.Module) -> list[Tensor]:
    """Return the parameters that the optimizer steps."""
    return [p for module in modules for p in module.parameters() if p.requires_grad]


def parameter_groups(student: nn.Module, taps: Mapping[str, str]) -> dict[str, Sequence[Tensor]]:
    """Split the student's parameters into the classifier block, which reads the pooled vector, and the backbone."""
    head = trainable(student.get_submodule(taps["pooled"].split(":")[0]))
    ids = {id(parameter) for parameter in head}
    backbone = [parameter for parameter in trainable(student) if id(parameter) not in ids]
    return dict(zip(COSINES, (head, backbone), strict=True))
