"""`dist`: the teacher's relations between classes and between images, by correlation."""

from __future__ import annotations

from torch import Tensor

from compress.methods.base import Method, Signals
from compress.methods.losses import dist_relations
from compress.recipe.schema import Dist


class DIST(Method):
    """L = ce CE + inter (1 - r over classes) + intra (1 - r over the batch), both times tau^2.

    Source: Huang et al. 2022.
    """

    config: Dist

    def forward(self, signals: Signals) -> dict[str, Tensor]:
        assert signals.teacher_logits is not None  # the step supplies them: reads_logits
        config = self.config
        inter, intra = dist_relations(signals.student_logits, signals.teacher_logits, config.temperature)
        scale = config.temperature**2 if config.tau_squared else 1.0
        return {
            "ce": self.task(signals, config.ce),
            "inter": config.inter * scale * inter,
            "intra": config.intra * scale * intra,
        }

    def smallest_batch(self) -> int:
        # A single image has no relation to another.
        return 2 if self.config.intra > 0 else 1
