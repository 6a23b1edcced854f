"""A teacher that runs on every batch: feature maps are too large to remember."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compress.models.taps import Tapped
from compress.training.precision import rounded
from compress.training.teacher.logit_cache import TeacherCache


class TeacherNetwork:
    """Answers a batch with the teacher's logits and maps, without gradient. It never changes, buffers included.

    Args:
        model: on the device. taps: name -> tap. prepare: raw pixels uint8 (N, H, W, 3) -> what the network takes, float32.
        autocast: makes the context that it runs in. batch_stats: BatchNorms use the batch's statistics.
        logits: "own" (of the same pass), a cache that answers with them (for batch_stats), or None where no loss reads them.
    """

    def __init__(
        self,
        model: nn.Module,
        taps: Mapping[str, str],
        prepare: Callable[[Tensor], Tensor],
        autocast: Callable[[], AbstractContextManager[Any]],
        *,
        batch_stats: bool,
        logits: TeacherCache | Literal["own"] | None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tapped, self.prepare, self.autocast, self.logits = Tapped(model, taps), prepare, autocast, logits
        if batch_stats:
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.train()
                    module.track_running_stats = (
                        False  # in training mode: the running statistics are neither read nor written
                    )

    @property
    def recordable(self) -> bool:
        """Whether `answer` stays on the device."""
        return not isinstance(self.logits, TeacherCache) or self.logits.recordable

    @property
    def prefetch_limit(self) -> int:
        """Pictures that it may be asked for ahead at once."""
        return self.logits.prefetch_limit if isinstance(self.logits, TeacherCache) else 0

    def prefetch_logits(self, index: Tensor, view: Tensor, pixels: Callable[[Tensor, Tensor], Tensor]) -> Tensor | None:
        """Logits float16 (M, K) of steps to come, where a cache answers with them."""
        return self.logits.prefetch_logits(index, view, pixels) if isinstance(self.logits, TeacherCache) else None

    @torch.no_grad()
    def forward(self, cached_logits: Tensor | None, pixels: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Logits (N, K), rounded to float16 as the cache does, and the maps by name, all float32."""
        with self.autocast():
            logits, maps = self.tapped(self.prepare(pixels))
        named = {name: value.float() for name, value in maps.items()}
        if isinstance(self.logits, TeacherCache):
            return self.logits.forward(cached_logits, pixels)[0], named
        return (rounded(logits).float() if self.logits else None), named

    def merge(self, gather: Callable[[Tensor], Tensor]) -> None:
        """Learn what the other processes' teachers said."""
        if isinstance(self.logits, TeacherCache):
            self.logits.merge(gather)

    def save(self) -> None:
        """Keep what was learnt of the teacher's logits for later runs."""
        if isinstance(self.logits, TeacherCache):
            self.logits.save()
