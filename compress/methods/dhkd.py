"""`dhkd`: Dual-Head Knowledge Distillation (Yang et al. 2024, arXiv 2411.08937)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compress.methods.base import Method, MethodContext, Signals, ramp
from compress.methods.losses import binary_kl, binary_kl_norm
from compress.recipe.schema import Dhkd


def auxiliary_head(kind: str, width: int, classes: int, hidden: int, dropout: float) -> nn.Sequential:
    """Build the head that exists only in training: pooled vectors (N, width) -> logits (N, classes).

    Args:
        kind: "linear" has dK + K parameters; "nonlinear" has hidden d + hidden + 2 hidden + hidden K + K, with dropout
            before BatchNorm, as in the authors' code.
        width: d, of the pooled vector.
        classes: K.
        hidden: units of the nonlinear head.
        dropout: its rate, in [0, 1).
    """
    if kind == "linear":
        return nn.Sequential(nn.Linear(width, classes))
    return nn.Sequential(
        nn.Linear(width, hidden), nn.Dropout(dropout), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, classes)
    )


class DHKD(Method):
    """L = gamma CE(main) + alpha BinaryKL-Norm(auxiliary, teacher), each on its own head over the same pooled vector.

    With `head: none` both losses act on the student's classifier: the ablation that collapses in the paper.
    """

    config: Dhkd

    def __init__(self, config: Any, context: MethodContext) -> None:
        super().__init__(config, context)
        student = context.student
        self.auxiliary: nn.Sequential | None = None
        if config.head != "none":
            self.auxiliary = auxiliary_head(
                config.head, student.shape("pooled", self.label())[0], student.classes, config.hidden, config.dropout
            )
            self.student_taps = ("pooled",)
        # The step projects this loss's gradient in `training.gradients.aligned_backward`.
        self.aligned = () if config.align == "none" else ("bkl",)
        self.scope = "shared" if config.align == "shared" else "all"

    def alpha(self, epoch: Tensor) -> Tensor:
        """Return the auxiliary loss's weight at a 1-based epoch: a ramp, then constant, 0 from `stop_epoch` on."""
        weight = self.config.alpha * ramp(epoch, self.config.ramp_epochs)
        if self.config.stop_epoch is not None:
            weight = torch.where(epoch >= self.config.stop_epoch, torch.zeros_like(weight), weight)
        return weight

    def forward(self, signals: Signals) -> dict[str, Tensor]:
        assert signals.teacher_logits is not None  # the step supplies them: reads_logits
        logits = signals.student_logits if self.auxiliary is None else self.auxiliary(signals.student["pooled"])
        distance = binary_kl_norm if self.config.loss == "binary_kl_norm" else binary_kl
        return {
            "ce": self.task(signals, self.config.gamma),
            "bkl": self.alpha(signals.epoch) * distance(logits, signals.teacher_logits, self.config.temperature),
        }

    def smallest_batch(self) -> int:
        return 2 if self.config.head == "nonlinear" else 1
