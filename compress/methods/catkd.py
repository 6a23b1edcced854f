"""`catkd`: class activation maps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from compress.core.errors import UsageError
from compress.methods.base import Method, MethodContext, Signals
from compress.methods.losses import class_activation
from compress.models.deployed import without_bias
from compress.recipe.schema import Catkd


def activation_maps(map_: Tensor, head: Tensor) -> Tensor:
    """Apply a classifier's weight (K, d) at each position of a map (N, d, H, W): (N, K, H, W).

    The spatial mean of the result is the logits without bias.
    """
    return torch.nn.functional.conv2d(map_, head.to(map_.dtype)[:, :, None, None])


class CATKD(Method):
    """L = ce CE + cat MSE of pooled class activation maps.

    Both classifiers are used without their bias. Pooling and a 1x1 convolution commute, so the student ships as a plain
    Linear without bias.

    Source: Guo et al. 2023 (CVPR).
    """

    config: Catkd
    reads_logits = False
    student_taps = ("pre_pool", "head")
    teacher_taps = ("pre_pool", "head")

    def __init__(self, config: Any, context: MethodContext) -> None:
        super().__init__(config, context)
        assert context.teacher is not None  # needs_teacher
        for network in (context.student, context.teacher):
            network.shape("head", self.label())
            side = network.shape("pre_pool", self.label())[1]
            if side < config.side:
                raise UsageError(
                    f"distill.catkd.side: {config.side} is larger than the last map of {network.name} "
                    f"({side}x{side}); lower it"
                )
        self.entry = context.student.entry

    def logits(self, signals: Signals) -> Tensor:
        return activation_maps(signals.student["pre_pool"], signals.student["head"]).mean((2, 3))

    def forward(self, signals: Signals) -> dict[str, Tensor]:
        config = self.config
        student, teacher = (
            activation_maps(side["pre_pool"], side["head"]) for side in (signals.student, signals.teacher)
        )
        return {
            "ce": self.task(replace(signals, student_logits=student.mean((2, 3))), config.ce),
            "cat": config.cat * class_activation(student, teacher, config.side, normalize=config.normalize),
        }

    def deployed(self, student: nn.Module) -> nn.Module:
        return without_bias(student, self.entry)

    def deployed_spec(self) -> dict[str, Any]:
        return {"kind": "catkd"}
