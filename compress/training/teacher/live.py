"""A teacher that runs on every batch, because feature maps are too large to cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compress.models.taps import Tapped
from compress.training.precision import round_logits
from compress.training.teacher.logit_cache import TeacherCache


class TeacherNetwork:
    """A `step.TeacherSource` that computes logits and maps without gradient; the network and its buffers never change.

    Args:
        model: the teacher, on the device.
        taps: its taps by name.
        prepare: maps pixels uint8 (N, H, W, 3) to the network's input, float32.
        autocast: returns the context that the network runs in.
        batch_stats: its BatchNorms use the batch's statistics.
        logits: "own" (from the same pass), a cache that holds them (for `batch_stats`), or None where no loss reads
            them.
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
                    # In training mode the running statistics are then neither read nor written.
                    module.track_running_stats = False

    @property
    def cache(self) -> TeacherCache | None:
        """The cache that holds the logits, where there is one."""
        return self.logits if isinstance(self.logits, TeacherCache) else None

    @property
    def recordable(self) -> bool:
        """Whether `forward` stays on the device."""
        return self.cache is None or self.cache.recordable

    @property
    def prefetch_limit(self) -> int:
        """How many images to prefetch per call."""
        return 0 if self.cache is None else self.cache.prefetch_limit

    def prefetch_logits(self, index: Tensor, view: Tensor, pixels: Callable[[Tensor, Tensor], Tensor]) -> Tensor | None:
        """Return the logits of coming steps, float16 (M, K), where a cache holds them; see `step.TeacherSource`."""
        return None if self.cache is None else self.cache.prefetch_logits(index, view, pixels)

    @torch.no_grad()
    def forward(self, cached_logits: Tensor | None, pixels: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Return logits (N, K), rounded to float16 as the cache does, and the maps by name, all float32."""
        with self.autocast():
            logits, maps = self.tapped(self.prepare(pixels))
        named = {name: value.float() for name, value in maps.items()}
        if self.cache is not None:
            return self.cache.forward(cached_logits, pixels)[0], named
        return (round_logits(logits).float() if self.logits else None), named

    def merge(self, gather: Callable[[Tensor], Tensor]) -> None:
        """Add the logits that the other ranks' teachers have computed."""
        if self.cache is not None:
            self.cache.merge(gather)

    def save(self) -> None:
        """Save the new logits for later runs."""
        if self.cache is not None:
            self.cache.save()
