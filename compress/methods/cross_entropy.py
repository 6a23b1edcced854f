"""`none`: plain cross-entropy, the baseline for distillation."""

from __future__ import annotations

from torch import Tensor

from compress.methods.base import Method, Signals


class CrossEntropy(Method):
    """L = CE(student, labels)."""

    needs_teacher = False
    reads_logits = False

    def forward(self, signals: Signals) -> dict[str, Tensor]:
        return {"ce": self.task(signals)}
