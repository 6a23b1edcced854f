"""`fitnet`: hints from a stage in the middle of the teacher."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compress.methods.base import Method, MethodContext, Signals
from compress.methods.losses import hint, kd_kl, same_size
from compress.recipe.schema import Fitnet


def regressor(student: tuple[int, ...], teacher: tuple[int, ...], *, activation: bool = True) -> nn.Sequential:
    """Build what maps the student's map (C, H, W) to the teacher's: a convolution with bias, BatchNorm, ReLU.

    The convolution is 3x3 with stride 2 where the student's side is twice the teacher's, and a transposed 4x4 with
    stride 2 where it is half. Otherwise its kernel is 1 + H_s - H_t where the student's map is not smaller, and 1x1
    where it is; the teacher's map is then pooled to it.

    Args:
        student: shape of the student's map.
        teacher: shape of the teacher's.
        activation: end with a ReLU.
    """
    (width_in, side_s, _), (width, side_t, _) = student, teacher
    if side_s == 2 * side_t:
        conv: nn.Module = nn.Conv2d(width_in, width, 3, stride=2, padding=1)
    elif 2 * side_s == side_t:
        conv = nn.ConvTranspose2d(width_in, width, 4, stride=2, padding=1)
    else:
        conv = nn.Conv2d(width_in, width, max(1 + side_s - side_t, 1))
    return nn.Sequential(conv, nn.BatchNorm2d(width), *((nn.ReLU(),) if activation else ()))


class FitNet(Method):
    """joint: L = ce CE + hint MSE(regressor(F_s), F_t). two_stage: the hint alone first, then ce CE + kd T^2 KL.

    Source: Romero et al. 2015.
    """

    config: Fitnet

    def __init__(self, config: Any, context: MethodContext) -> None:
        super().__init__(config, context)
        assert context.teacher is not None  # needs_teacher
        tap = f"stages_post.{config.stage}"
        student, teacher = (
            network.shape(tap, f"{self.label()} with stage {config.stage}")
            for network in (context.student, context.teacher)
        )
        self.regressor = regressor(student, teacher, activation=not config.signed)
        self.student_taps = self.teacher_taps = (tap,)
        self.reads_logits = config.mode == "two_stage"

    def forward(self, signals: Signals) -> dict[str, Tensor]:
        config, (tap,) = self.config, self.student_taps
        if self.phase == 1:
            assert signals.teacher_logits is not None  # the step supplies them: reads_logits
            kd = config.kd * kd_kl(signals.student_logits, signals.teacher_logits, config.temperature)
            return {"ce": self.task(signals, config.ce), "kd": kd, "hint": torch.zeros_like(kd.detach())}
        distance = config.hint * hint(*same_size(self.regressor(signals.student[tap]), signals.teacher[tap]))
        if config.mode == "joint":
            return {"ce": self.task(signals, config.ce), "hint": distance}
        # Zeros without a graph: layers above the hint have no gradient, so neither momentum nor weight decay moves
        # them.
        nothing = torch.zeros_like(distance.detach())
        return {"ce": nothing, "kd": nothing, "hint": distance}

    def start_epoch(self, epoch: int) -> None:
        """Choose the stage: the hint alone up to `hint_epochs`, then the labels and the teacher's logits."""
        self.phase = int(self.config.mode == "two_stage" and epoch > self.config.hint_epochs)

    def smallest_batch(self) -> int:
        return 2
