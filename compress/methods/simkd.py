"""`simkd`: the teacher's own classifier on projected features."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from compress.core.errors import UsageError
from compress.methods.base import Method, MethodContext, Signals
from compress.methods.losses import hint
from compress.models.deployed import projector, with_projector
from compress.recipe.schema import Simkd


class SimKD(Method):
    """L = simkd MSE(projector(F_s), F_t), without labels; encoder, projector and the teacher's classifier ship.

    Source: Chen et al. 2022.
    """

    config: Simkd
    reads_logits = False
    student_taps = ("last_stage",)
    teacher_taps = ("pre_pool",)

    def __init__(self, config: Any, context: MethodContext) -> None:
        super().__init__(config, context)
        assert context.teacher is not None  # needs_teacher
        student, teacher = context.student, context.teacher
        ours, theirs = student.shape("last_stage", self.label()), teacher.shape("pre_pool", self.label())
        head = teacher.shape("head", f"{self.label()} ships the teacher's classifier and")
        if theirs[0] % config.factor:
            raise UsageError(
                f"distill.simkd.factor: {config.factor} does not divide the {theirs[0]} channels of {teacher.name}"
            )
        self.entry = student.entry
        self._spec = {
            "kind": "simkd",
            "width_in": ours[0],
            "width": theirs[0],
            "factor": config.factor,
            "pool": theirs[1] if ours[1] > theirs[1] else None,
            "classes": teacher.classes,
        }
        self.projector = projector(ours[0], theirs[0], config.factor, self._spec["pool"])
        self.classifier = nn.Linear(head[1], head[0]).requires_grad_(False)
        assert teacher.classifier is not None  # it has a head
        self.classifier.load_state_dict(dict(zip(("weight", "bias"), teacher.classifier, strict=True)))

    def forward(self, signals: Signals) -> dict[str, Tensor]:
        student, teacher = self.projector(signals.student["last_stage"]), signals.teacher["pre_pool"]
        if teacher.shape[2:] != student.shape[2:]:
            teacher = F.adaptive_avg_pool2d(teacher, student.shape[2:])
        return {"simkd": self.config.simkd * hint(student, teacher)}

    def logits(self, signals: Signals) -> Tensor:
        logits: Tensor = self.classifier(self.projector(signals.student["last_stage"]).mean((2, 3)))
        return logits

    def smallest_batch(self) -> int:
        return 2

    def deployed(self, student: nn.Module) -> nn.Module:
        return with_projector(student, self.entry, self.projector, self.classifier)

    def deployed_spec(self) -> dict[str, Any]:
        return self._spec
