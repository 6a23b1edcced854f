"""`crd`: contrastive representation distillation, with memories of both networks' embeddings."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.core.errors import UsageError
from compress.core.stateless_random import hashed
from compress.methods.base import Method, MethodContext, Signals
from compress.methods.losses import contrastive_nce
from compress.recipe.schema import Crd


class CRD(Method):
    """L = ce CE + crd (NCE of the student's embeddings against the teacher's memory + the reverse).

    The memories are buffers, so a resumed training continues with them. Their rows are the training images sorted by
    class, so the images of other classes are all rows outside one range. A negative is one draw, a function of (seed,
    step, image) and never of the rank. Several processes exchange their batch's embeddings, so all hold the same
    memory.

    Source: Tian et al. 2020.
    """

    config: Crd
    reads_logits = False
    needs_labels = True
    student_taps = ("pooled",)
    teacher_taps = ("pooled",)
    memory_student: Tensor
    memory_teacher: Tensor
    log_z: Tensor
    row: Tensor
    begin: Tensor
    end: Tensor

    def __init__(self, config: Any, context: MethodContext) -> None:
        super().__init__(config, context)
        assert context.teacher is not None  # needs_teacher
        self.seed = context.seed
        # Whether `log_z` is known, for each side. Asking the tensor itself would wait for the device.
        self.normalizer_known = [False, False]
        self.register_load_state_dict_post_hook(CRD._forget_normalizer)  # type: ignore[no-untyped-call]
        self.embed_student = nn.Linear(context.student.shape("pooled", self.label())[0], config.width)
        self.embed_teacher = nn.Linear(context.teacher.shape("pooled", self.label())[0], config.width)
        labels = context.labels[context.train_index]
        if len(torch.unique(labels)) < 2:
            raise UsageError(f"{self.label()} needs training images of at least two classes")
        order = torch.argsort(labels, stable=True)
        row = torch.full((len(context.labels),), -1, dtype=torch.int64, device=labels.device)
        row[context.train_index[order]] = torch.arange(len(labels), device=labels.device)
        counts = torch.bincount(labels, minlength=context.student.classes)
        bound = 1 / (config.width / 3) ** 0.5
        for name, value in (
            ("memory_student", torch.empty(len(labels), config.width).uniform_(-bound, bound)),
            ("memory_teacher", torch.empty(len(labels), config.width).uniform_(-bound, bound)),
            # Set by the first batch and never changed.
            ("log_z", torch.full((2,), float("nan"))),
            ("row", row),
            ("end", counts.cumsum(0)),
            ("begin", counts.cumsum(0) - counts),
        ):
            self.register_buffer(name, value)

    def draws(self, signals: Signals) -> Tensor:
        """Return memory rows (N, 1 + K): the image's own or one of its class, then K of other classes, drawn anew."""
        labels, count = signals.labels, self.config.negatives
        begin, end = self.begin[labels][:, None], self.end[labels][:, None]
        place = torch.arange(count + 1, device=labels.device)
        numbers = hashed(hashed(signals.index + (signals.step << 32), self.seed)[:, None] + place, 7)
        negative = numbers[:, 1:] % (len(self.memory_student) - (end - begin))
        negative = negative + (end - begin) * (negative >= begin)
        own = (
            self.row[signals.index][:, None]
            if self.config.positive == "own"
            else begin + numbers[:, :1] % (end - begin)
        )
        return torch.cat([own, negative], dim=1)

    def forward(self, signals: Signals) -> dict[str, Tensor]:
        student = F.normalize(self.embed_student(signals.student["pooled"]), dim=1)
        teacher = F.normalize(self.embed_teacher(signals.teacher["pooled"]), dim=1)
        rows = self.draws(signals)
        # Copies, because the backward pass reads the memories as they were, and `remember` changes them in place.
        total = self.contrast(student, self.memory_teacher.clone(), rows, 0) + self.contrast(
            teacher, self.memory_student.clone(), rows, 1
        )
        if self.training:
            self.remember(self.row[signals.index], student.detach(), teacher.detach())
        return {"ce": self.task(signals, self.config.ce), "crd": self.config.crd * total}

    def contrast(self, embedding: Tensor, memory: Tensor, rows: Tensor, side: int) -> Tensor:
        """Return the loss of one network's embeddings (N, width) against the other's memory.

        Args:
            embedding: (N, width), of norm 1.
            memory: (M, width).
            rows: int64 (N, 1 + K), see `draws`.
            side: 0 for the student's embeddings, 1 for the teacher's.
        """
        # All products, then a choice: a matrix product is cheaper than gathering N (1 + K) rows of the memory.
        scores = torch.gather(embedding @ memory.to(embedding.dtype).t(), 1, rows) / self.config.temperature
        if not self.normalizer_known[side]:
            if bool(self.log_z[side].isnan()):
                self.log_z[side] = self._first_z(scores.detach())
            self.normalizer_known[side] = True
        return contrastive_nce(scores, self.log_z[side], len(memory))

    def _forget_normalizer(self, _: object) -> None:
        """Look at `log_z` again: a loaded state may hold it, or not."""
        self.normalizer_known = [False, False]

    def _first_z(self, scores: Tensor) -> Tensor:
        """Return the log of mean(exp(scores)) times the number of images, over the batches (N, 1 + K) of all ranks."""
        # MPS has no float64.
        scores = scores.cpu() if scores.device.type == "mps" else scores
        levels = self.group.gather(torch.logsumexp(scores.double(), dim=1))
        share = len(self.memory_student) / (len(levels) * scores.shape[1])
        return (torch.logsumexp(levels, 0) + math.log(share)).to(self.log_z.dtype)

    @torch.no_grad()
    def remember(self, rows: Tensor, student: Tensor, teacher: Tensor) -> None:
        """Move the batch's rows of both memories towards its embeddings, in place."""
        rows, student, teacher = (self.group.gather(own) for own in (rows, student, teacher))
        momentum = self.config.momentum
        for name, value in (("memory_student", student), ("memory_teacher", teacher)):
            memory = self.get_buffer(name)
            moved = F.normalize(momentum * memory[rows] + (1 - momentum) * value.to(memory.dtype), dim=1)
            memory.index_copy_(0, rows, moved)
