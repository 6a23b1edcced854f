"""`rkd`: relational knowledge distillation."""

from __future__ import annotations

from torch import Tensor

from compress.methods.base import Method, Signals
from compress.methods.losses import rkd_angle, rkd_distance
from compress.recipe.schema import Rkd


class RKD(Method):
    """L = ce CE + distance D + angle A: relations of the pooled vectors within the batch. Source: Park et al. 2019."""

    config: Rkd
    reads_logits = False
    student_taps = ("pooled",)
    teacher_taps = ("pooled",)

    def forward(self, signals: Signals) -> dict[str, Tensor]:
        student, teacher, config = signals.student["pooled"], signals.teacher["pooled"], self.config
        return {
            "ce": self.task(signals, config.ce),
            "distance": config.distance * rkd_distance(student, teacher),
            "angle": config.angle * rkd_angle(student, teacher),
        }

    def smallest_batch(self) -> int:
        # Two images have one distance, which is its own mean, so the loss is 0; one image has none.
        return 3
