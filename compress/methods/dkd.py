"""`dkd`: decoupled knowledge distillation."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from compress.core.errors import UsageError
from compress.methods.base import Method, MethodContext, Signals, ramp
from compress.methods.losses import decoupled_kd
from compress.recipe.schema import Dkd


class DKD(Method):
    """L = ce CE + min(1, epoch / warmup) (alpha TCKD + beta NCKD) T^2. Source: Zhao et al. 2022."""

    config: Dkd
    needs_labels = True

    def __init__(self, config: Any, context: MethodContext) -> None:
        super().__init__(config, context)
        if context.student.classes < 3 and config.beta > 0:
            raise UsageError(
                f"{self.label()} compares the classes other than the right one, and with two classes there is "
                "only one: its second part is always 0; use kd, or set distill.dkd.beta: 0"
            )

    def forward(self, signals: Signals) -> dict[str, Tensor]:
        assert signals.teacher_logits is not None  # the step supplies them: reads_logits
        config = self.config
        target, others = decoupled_kd(
            signals.student_logits, signals.teacher_logits, signals.labels, config.temperature
        )
        warm = ramp(signals.epoch, config.warmup_epochs)
        return {
            "ce": self.task(signals, config.ce),
            "tckd": warm * config.alpha * target,
            "nckd": warm * config.beta * others,
        }
