"""`ofd`: the overhaul of feature distillation, which compares maps in front of the activation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compress.core.errors import UsageError
from compress.methods.base import Method, MethodContext, Signals
from compress.methods.losses import margin_relu, margins, partial_l2, same_size
from compress.recipe.schema import Ofd


def connector(width_in: int, width: int) -> nn.Sequential:
    """Build what maps the student's channels to the teacher's: a 1x1 convolution without bias, BatchNorm."""
    conv = nn.Conv2d(width_in, width, 1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(width))


class OFD(Method):
    """L = ce CE + ofd sum over stages of 2^-(depth from the end) partial L2.

    The teacher's BatchNorms use the batch's statistics, which the authors found to be better; its buffers never change.

    Source: Heo et al. 2019 (arXiv 1904.01866).
    """

    config: Ofd
    reads_logits = False

    def __init__(self, config: Any, context: MethodContext) -> None:
        super().__init__(config, context)
        assert context.teacher is not None  # needs_teacher
        teacher = context.teacher
        ours, theirs = (network.stages("stages_pre", self.label()) for network in (context.student, teacher))
        if len(teacher.norms) != len(theirs):
            raise UsageError(
                f"{self.label()} takes its margins from the BatchNorm in front of each stage's activation; "
                f"{teacher.name} has none that describes all channels; choose another teacher, or reviewkd"
            )
        count = min(len(ours), len(theirs))
        self.student_taps = tuple(f"stages_pre.{number}" for number in range(len(ours) - count + 1, len(ours) + 1))
        self.teacher_taps = tuple(f"stages_pre.{number}" for number in range(len(theirs) - count + 1, len(theirs) + 1))
        self.connectors = nn.ModuleList(
            connector(own[0], their[0]) for own, their in zip(ours[-count:], theirs[-count:], strict=True)
        )
        for place, (gamma, beta) in enumerate(teacher.norms[-count:]):
            self.register_buffer(f"margin_{place}", margins(gamma, beta, exact=config.exact_margins).float())
        self.teacher_mode = "batch_stats" if config.teacher_bn == "batch" else "eval"

    def forward(self, signals: Signals) -> dict[str, Tensor]:
        total, count = [], len(self.student_taps)
        for place, (ours, theirs) in enumerate(zip(self.student_taps, self.teacher_taps, strict=True)):
            student, teacher = self.connectors[place](signals.student[ours]), signals.teacher[theirs]
            student, teacher = same_size(student, teacher)
            distance = partial_l2(student, margin_relu(teacher, self.get_buffer(f"margin_{place}")))
            total.append(distance / 2 ** (count - 1 - place))
        return {"ce": self.task(signals, self.config.ce), "ofd": self.config.ofd * torch.stack(total).sum()}

    def smallest_batch(self) -> int:
        return 2
