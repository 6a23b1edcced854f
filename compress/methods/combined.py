"""Several methods at once, as the sum of their losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from torch import Tensor, nn

from compress.core.distributed import Group
from compress.core.errors import UsageError
from compress.methods.base import TASK, Method, MethodContext, Signals


class Combined(Method):
    """The losses of all parts, each with its own settings; the task loss is the first part's alone."""

    def __init__(self, kinds: Sequence[tuple[str, type[Method], Any]], context: MethodContext) -> None:
        nn.Module.__init__(self)
        self.parts = nn.ModuleList(kind(config, context) for _, kind, config in kinds)
        parts = self._parts()
        modes = {part.teacher_mode: name for (name, _, _), part in zip(kinds, parts, strict=True) if part.teacher_taps}
        if len(modes) > 1:
            raise UsageError(
                f"distill.method: {modes['batch_stats']} reads the teacher with the batch's statistics, "
                f"{modes['eval']} with its own; "
                "choose one with teacher_bn, or leave one of them out"
            )
        self.reads_logits = any(part.reads_logits for part in parts)
        self.student_taps = tuple(sorted({tap for part in parts for tap in part.student_taps}))
        self.teacher_taps = tuple(sorted({tap for part in parts for tap in part.teacher_taps}))
        self.teacher_mode = next(iter(modes), "eval")
        self.aligned = tuple(name for part in parts for name in part.aligned)
        self.scope = next((part.scope for part in parts if part.aligned), "all")
        self.recordable = all(part.recordable for part in parts)
        self.ships = next((place for place, part in enumerate(parts) if part.deployed_spec() is not None), 0)

    def _parts(self) -> list[Method]:
        return [cast(Method, part) for part in self.parts]

    @property
    def shipping(self) -> Method:
        """The part that decides what ships: a property, because an attribute would save its state a second time."""
        return self._parts()[self.ships]

    def forward(self, signals: Signals) -> dict[str, Tensor]:
        signals = replace(signals, student_logits=self.logits(signals))
        losses: dict[str, Tensor] = {}
        for place, part in enumerate(self._parts()):
            losses |= {name: loss for name, loss in part(signals).items() if place == 0 or name != TASK}
        return losses

    def logits(self, signals: Signals) -> Tensor:
        return self.shipping.logits(signals)

    def set_process_group(self, group: Group) -> None:
        for part in self._parts():
            part.set_process_group(group)

    def start_epoch(self, epoch: int) -> None:
        for part in self._parts():
            part.start_epoch(epoch)
        self.phase = sum(part.phase << place for place, part in enumerate(self._parts()))

    def smallest_batch(self) -> int:
        return max(part.smallest_batch() for part in self._parts())

    def deployed(self, student: nn.Module) -> nn.Module:
        return self.shipping.deployed(student)

    def deployed_spec(self) -> dict[str, Any] | None:
        return self.shipping.deployed_spec()
