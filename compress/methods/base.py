"""What every distillation method is given, and what it must answer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from compress.errors import UsageError


@dataclass(frozen=True)
class Shape:
    """What a method may know of a network: its classes and the length of its pooled vector (the classifier's input)."""

    name: str
    classes: int
    pooled: int


@dataclass(frozen=True)
class Signals:
    """One batch, on one device; logits and features in float32.

    labels (N,) int64, -1 for an unlabelled picture; index (N,) int64, position in the training set; epoch 0-dim float32 on the
    device, 1-based (ramps: a captured graph must not bake it in); student_logits (N, K); teacher_logits (N, K) without gradient,
    or None where no teacher is used; student: the taps the method asked for, by name.
    """

    labels: Tensor
    index: Tensor
    epoch: Tensor
    student_logits: Tensor
    teacher_logits: Tensor | None = None
    student: Mapping[str, Tensor] = field(default_factory=dict)


class Method(nn.Module):
    """From signals to named losses. Subclasses set `student_taps` and `aligned` in `__init__`.

    Attributes:
        needs_teacher: False only where no loss reads the teacher.
        student_taps: names of the taps to read; "pooled" is the classifier's input, (N, d).
        aligned: names of the losses that are projected onto the normal plane of the first loss.
        scope: of that projection, "all" or "shared" (see gradients.aligned_backward).
    """

    needs_teacher = True
    student_taps: tuple[str, ...] = ()
    aligned: tuple[str, ...] = ()
    scope = "all"

    def __init__(self, config: Any, *, student: Shape, teacher: Shape | None, train_labels: Tensor, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.label_smoothing = label_smoothing
        if self.needs_teacher and teacher is None:
            raise UsageError(f"distill.method: {type(self).__name__} needs a teacher; use method: none for plain cross-entropy")
        if teacher is not None and teacher.classes != student.classes:
            raise UsageError(f"the teacher {teacher.name} knows {teacher.classes} classes, the student {student.name} {student.classes}")

    @abstractmethod
    def forward(self, signals: Signals) -> dict[str, Tensor]:
        """Named, weighted scalar losses; the task loss first where there is one."""

    def smallest_batch(self) -> int:
        """The smallest training batch that the method's modules accept."""
        return 1

    def deployed(self, student: nn.Module) -> nn.Module:
        """The network that ships: the student itself unless a method says otherwise."""
        return student
