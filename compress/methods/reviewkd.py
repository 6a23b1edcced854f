"""`reviewkd`: knowledge review, which fuses the student's deep stages into its shallow ones."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.methods.base import Method, MethodContext, Signals, ramp
from compress.methods.losses import hierarchical_context
from compress.recipe.schema import ReviewKd


class Fusion(nn.Module):
    """ABF: weighs this stage's map and the deeper residual by attention, then maps them to the teacher's channels.

    Source: Chen et al. 2021 (arXiv 2104.09044), figure 3.
    """

    def __init__(self, width_in: int, middle: int, width: int, *, fuse: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(width_in, middle, 1, bias=False), nn.BatchNorm2d(middle))
        self.expand = nn.Sequential(nn.Conv2d(middle, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.attention = nn.Conv2d(2 * middle, 2, 1) if fuse else None
        for conv in (self.reduce[0], self.expand[0]):
            assert isinstance(conv, nn.Conv2d)
            nn.init.kaiming_uniform_(conv.weight, a=1)

    def forward(self, x: Tensor, deeper: Tensor | None, side: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the map (N, width, *side) and the residual (N, middle, *side).

        Args:
            x: this stage's map, (N, C, H, W).
            deeper: the residual (N, middle, h, w) of the deeper stages, or None.
            side: height and width of the teacher's map.
        """
        x = self.reduce(x)
        if self.attention is not None and deeper is not None:
            deeper = F.interpolate(deeper, x.shape[2:], mode="nearest")
            share = torch.sigmoid(self.attention(torch.cat([x, deeper], 1)))
            x = x * share[:, :1] + deeper * share[:, 1:]
        if tuple(x.shape[2:]) != side:
            x = F.interpolate(x, side, mode="nearest")
        return self.expand(x), x


class ReviewKD(Method):
    """L = ce CE + min(1, epoch / warmup) weight sum over stages and the pooled vector of HCL.

    Source: Chen et al. 2021.
    """

    config: ReviewKd
    reads_logits = False

    def __init__(self, config: Any, context: MethodContext) -> None:
        super().__init__(config, context)
        assert context.teacher is not None  # needs_teacher
        ours = context.student.stages(f"stages_{config.student_maps}", self.label())
        theirs = context.teacher.stages("stages_pre", self.label())
        count = min(len(ours), len(theirs))
        # Paired from the deep end, the pooled vector first: the shallowest stages are those without a partner.
        self.student_taps = (
            "pooled",
            *(f"stages_{config.student_maps}.{number}" for number in range(len(ours), len(ours) - count, -1)),
        )
        self.teacher_taps = (
            "pooled",
            *(f"stages_pre.{number}" for number in range(len(theirs), len(theirs) - count, -1)),
        )
        widths = [
            network.shapes[name][0]
            for network, names in ((context.student, self.student_taps), (context.teacher, self.teacher_taps))
            for name in names
        ]
        inner = config.width or min(512, widths[0])
        pairs = zip(widths[: count + 1], widths[count + 1 :], strict=True)
        self.fusions = nn.ModuleList(
            Fusion(own, inner, width, fuse=place > 0) for place, (own, width) in enumerate(pairs)
        )
        self.teacher_mode = "batch_stats" if config.teacher_bn == "batch" else "eval"

    def fused(self, student: list[Tensor], sides: list[tuple[int, int]]) -> list[Tensor]:
        """Return the student's maps in the teacher's shapes, deepest first."""
        found, residual = [], None
        for fusion, map_, side in zip(self.fusions, student, sides, strict=True):
            out, residual = fusion(map_, residual, side)
            found.append(out)
        return found

    def forward(self, signals: Signals) -> dict[str, Tensor]:
        student = [_map(signals.student[name]) for name in self.student_taps]
        teacher = [_map(signals.teacher[name]) for name in self.teacher_taps]
        ours = self.fused(student, [(map_.shape[2], map_.shape[3]) for map_ in teacher])
        total = torch.stack([hierarchical_context(own, their) for own, their in zip(ours, teacher, strict=True)]).sum()
        return {
            "ce": self.task(signals, self.config.ce),
            "hcl": ramp(signals.epoch, self.config.warmup_epochs) * self.config.weight * total,
        }

    def smallest_batch(self) -> int:
        # BatchNorm over the pooled vector.
        return 2


def _map(value: Tensor) -> Tensor:
    """Return a pooled vector (N, d) as a map of one pixel."""
    return value[:, :, None, None] if value.ndim == 2 else value
