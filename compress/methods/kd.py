"""`kd`: Hinton's knowledge distillation."""

from __future__ import annotations

from torch import Tensor

from compress.methods.base import Method, Signals
from compress.methods.losses import kd_kl, standardize_logits
from compress.recipe.schema import Kd


class KD(Method):
    """L = ce CE + kd T^2 KL(teacher || student). Source: Hinton et al. 2015."""

    config: Kd

    def forward(self, signals: Signals) -> dict[str, Tensor]:
        assert signals.teacher_logits is not None  # the step supplies them: reads_logits
        student, teacher = signals.student_logits, signals.teacher_logits
        if self.config.standardize:
            student, teacher = standardize_logits(student), standardize_logits(teacher)
        return {
            "ce": self.task(signals, self.config.ce),
            "kd": self.config.kd * kd_kl(student, teacher, self.config.temperature),
        }
