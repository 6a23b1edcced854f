"""`at`: attention transfer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compress.methods.base import Method, MethodContext, Signals
from compress.methods.losses import attention
from compress.recipe.schema import At


class AT(Method):
    """L = ce CE + at sum over stages of the squared difference of spatial attention.

    Source: Zagoruyko and Komodakis 2017.
    """

    config: At
    reads_logits = False

    def __init__(self, config: Any, context: MethodContext) -> None:
        super().__init__(config, context)
        assert context.teacher is not None  # needs_teacher
        counts = [len(network.stages("stages_post", self.label())) for network in (context.student, context.teacher)]
        # Paired from the shallow end, as in the benchmarks: a fourth stage of one network has no partner.
        self.student_taps = self.teacher_taps = tuple(f"stages_post.{stage}" for stage in range(1, min(counts) + 1))

    def forward(self, signals: Signals) -> dict[str, Tensor]:
        stages = [attention(signals.student[name], signals.teacher[name]) for name in self.student_taps]
        return {"ce": self.task(signals, self.config.ce), "at": self.config.at * torch.stack(stages).sum()}
