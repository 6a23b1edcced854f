"""What every distillation method gets, and what it returns."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compress.core.distributed import ALONE, Group
from compress.core.errors import UsageError
from compress.methods.losses import cross_entropy
from compress.models.outline import Outline
from compress.recipe.schema import METHOD_SECTIONS

# The loss on the labels. Where several methods are combined, only the first one's counts.
TASK = "ce"


@dataclass(frozen=True)
class Signals:
    """One batch of N images, on one device; logits and maps in float32.

    Attributes:
        labels: int64 (N,), -1 for an unlabelled image.
        index: int64 (N,), position among all images.
        epoch: 0-dim float32 on the device, 1-based. A tensor, because a recorded step must not bake it in.
        student_logits: (N, K).
        teacher_logits: (N, K) without gradient, or None where no loss reads them.
        student: the student's maps that the method asked for, by name.
        teacher: the teacher's, without gradient.
        step: 0-dim int64 on the device: steps done since training began.
    """

    labels: Tensor
    index: Tensor
    epoch: Tensor
    student_logits: Tensor
    teacher_logits: Tensor | None = None
    student: Mapping[str, Tensor] = field(default_factory=dict)
    teacher: Mapping[str, Tensor] = field(default_factory=dict)
    step: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))


@dataclass(frozen=True)
class MethodContext:
    """What a method is built for.

    Attributes:
        labels: int64 (P,) of all images, -1 for an unlabelled one.
        train_index: int64 (M,), the images that are trained on.
        seed: of the training.
        class_weights: float32 (K,), of the task loss; None: all classes count alike.
    """

    student: Outline
    teacher: Outline | None
    labels: Tensor
    train_index: Tensor
    label_smoothing: float = 0.0
    seed: int = 0
    class_weights: Tensor | None = None


class Method(nn.Module):
    """Maps signals to named losses. Its parameters train with the student and never ship.

    Attributes:
        needs_teacher: False only where no loss reads the teacher.
        reads_logits: whether a loss reads the teacher's logits.
        needs_labels: whether every image must have a label.
        student_taps: names of the student's maps to read, see `Outline`; set in `__init__`.
        teacher_taps: names of the teacher's.
        teacher_mode: "batch_stats": the teacher's BatchNorms use the batch's statistics; its buffers never change.
        aligned: names of the losses that are projected onto the normal plane of the first loss's gradient.
        scope: of that projection, "all" or "shared", see `gradients.aligned_backward`.
        recordable: whether a step can be recorded once and replayed, because the method neither waits for the device
            nor replaces tensors by new ones.
        phase: changes only in `start_epoch`, where other losses are computed from then on.
        group: the processes that share each batch.
    """

    needs_teacher = True
    reads_logits = True
    needs_labels = False
    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()
    teacher_mode: Literal["eval", "batch_stats"] = "eval"
    aligned: tuple[str, ...] = ()
    scope = "all"
    recordable = True
    phase: int = 0
    group: Group = ALONE
    class_weights: Tensor | None

    def __init__(self, config: Any, context: MethodContext) -> None:
        super().__init__()
        self.config = config
        self.label_smoothing = context.label_smoothing
        # It follows from recipe and labels, so no saved state holds it.
        self.register_buffer("class_weights", context.class_weights, persistent=False)
        student, teacher = context.student, context.teacher
        if self.needs_teacher and teacher is None:
            raise UsageError(f"{self.label()} needs a teacher; use method: none for plain cross-entropy")
        if teacher is not None and teacher.classes != student.classes:
            raise UsageError(
                f"the teacher {teacher.name} knows {teacher.classes} classes, "
                f"the student {student.name} {student.classes}"
            )
        unlabelled = int((context.labels < 0).sum()) if self.needs_labels else 0
        if unlabelled:
            raise UsageError(f"{self.label()} needs a label for every image; {unlabelled} have none")

    def label(self) -> str:
        """Return the recipe key and name with which messages about the method begin."""
        name = next(name for name, section in METHOD_SECTIONS.items() if isinstance(self.config, section))
        return f"distill.method: {name}"

    @abstractmethod
    def forward(self, signals: Signals) -> dict[str, Tensor]:
        """Return named, weighted scalar losses; the task loss comes first where there is one."""

    def logits(self, signals: Signals) -> Tensor:
        """Return the logits (N, K) of the network that ships, from what the student gives during training."""
        return signals.student_logits

    def task(self, signals: Signals, weight: float = 1.0) -> Tensor:
        """Return the weighted cross-entropy."""
        loss = cross_entropy(signals.student_logits, signals.labels, self.label_smoothing, self.class_weights)
        return weight * loss

    def set_process_group(self, group: Group) -> None:
        """Set, before training, which processes share each batch; signals are this rank's part of it."""
        self.group = group

    def start_epoch(self, epoch: int) -> None:
        """Prepare for a 1-based epoch."""

    def smallest_batch(self) -> int:
        """Return the smallest training batch that the method accepts."""
        return 1

    def deployed(self, student: nn.Module) -> nn.Module:
        """Return the network that ships, sharing the student's parameters: the student itself in most methods."""
        return student

    def deployed_spec(self) -> dict[str, Any] | None:
        """Return how it differs from a fresh student, as plain values for `models.deployed`; None: not at all."""
        return None


def ramp(epoch: Tensor, epochs: float) -> Tensor:
    """Return min(1, epoch / epochs) for a 1-based epoch; 1 where `epochs` is 0."""
    return (epoch / epochs).clamp(max=1.0) if epochs > 0 else torch.ones_like(epoch)
