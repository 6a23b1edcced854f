"""What every distillation method is given, and what it must answer."""

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

TASK = "ce"  # the loss on the labels; of several methods together only the first one's counts


@dataclass(frozen=True)
class Signals:
    """One batch, on one device; logits and features in float32.

    labels (N,) int64, -1 for an unlabelled picture; index (N,) int64, position among all pictures; epoch 0-dim float32, 1-based, and step
    0-dim int64, steps done since training began, both on the device (a captured graph must not bake them in); student_logits (N, K);
    teacher_logits (N, K) without gradient, or None where no loss reads them; student, teacher: the taps that the method asked for, by name.
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
    """What a method is built for. labels (P,) int64 of all pictures, -1 unlabelled; train_index (M,) int64: those that are trained on."""

    student: Outline
    teacher: Outline | None
    labels: Tensor
    train_index: Tensor
    label_smoothing: float = 0.0
    seed: int = 0


class Method(nn.Module):
    """From signals to named losses. Its parameters train with the student and never ship. Subclasses set the names in `__init__`.

    Attributes:
        needs_teacher: False only where no loss reads the teacher. reads_logits: whether a loss reads the teacher's logits.
        needs_labels: every picture must have one.
        student_taps, teacher_taps: names of the maps to read, see `Outline`.
        teacher_mode: "batch_stats": the teacher's BatchNorms use the batch's statistics; its buffers never change.
        aligned: names of the losses that are projected onto the normal plane of the first loss.
        scope: of that projection, "all" or "shared" (see gradients.aligned_backward).
        recordable: a step may be recorded once and replayed: it neither waits for the device nor puts new tensors in place of old ones.
        phase: changes, in `start_epoch` only, where from then on other losses are computed.
        group: the processes that share each batch, see `join`.
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

    def __init__(self, config: Any, context: MethodContext) -> None:
        super().__init__()
        self.config = config
        self.label_smoothing = context.label_smoothing
        student, teacher = context.student, context.teacher
        if self.needs_teacher and teacher is None:
            raise UsageError(f"{self.label()} needs a teacher; use method: none for plain cross-entropy")
        if teacher is not None and teacher.classes != student.classes:
            raise UsageError(
                f"the teacher {teacher.name} knows {teacher.classes} classes, the student {student.name} {student.classes}"
            )
        unlabelled = int((context.labels < 0).sum()) if self.needs_labels else 0
        if unlabelled:
            raise UsageError(f"{self.label()} needs a label for every picture; {unlabelled} have none")

    @classmethod
    def label(cls) -> str:
        """How messages begin."""
        return f"distill.method: {cls.__name__.lower()}"

    @abstractmethod
    def forward(self, signals: Signals) -> dict[str, Tensor]:
        """Named, weighted scalar losses; the task loss first where there is one."""

    def logits(self, signals: Signals) -> Tensor:
        """(N, K) of the network that ships, from what the student gives in training."""
        return signals.student_logits

    def task(self, signals: Signals, weight: float = 1.0) -> Tensor:
        """The weighted cross-entropy."""
        return weight * cross_entropy(signals.student_logits, signals.labels, self.label_smoothing)

    def set_process_group(self, group: Group) -> None:
        """Told before a training which processes share each batch; signals are this process's part of it."""
        self.group = group

    def start_epoch(self, epoch: int) -> None:
        """Told before each 1-based epoch."""

    def smallest_batch(self) -> int:
        """The smallest training batch that the method's modules accept."""
        return 1

    def deployed(self, student: nn.Module) -> nn.Module:
        """The network that ships, sharing the student's parameters: the student itself unless `form` says otherwise."""
        return student

    def deployed_spec(self) -> dict[str, Any] | None:
        """How the deployed network differs from a freshly built student, as plain values for `models.deployed`; None: not at all."""
        return None


def ramp(epoch: Tensor, epochs: float) -> Tensor:
    """min(1, epoch / epochs) of the 1-based epoch; 1 where epochs is 0."""
    return (epoch / epochs).clamp(max=1.0) if epochs > 0 else torch.ones_like(epoch)
