"""What the end of a training was held against."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingChecks:
    """What a training's end was held against, on the validation images; never part of a key.

    `right`: images that the weights that ship classify correctly. `lost`: those that they get wrong, and get right
    where each BatchNorm uses the statistics of the batch, as in training; `gained`: the reverse. None: the network has
    no BatchNorm. `momentum`: the smallest of its BatchNorms. `probe_right`: images that a last layer alone classified
    correctly, before anything was fine-tuned; it was fitted to `probe_images` with `probe_penalty`.
    """

    images: int
    right: int
    steps: int
    batch_norm: str  # running | recomputed | frozen
    lost: int | None = None
    gained: int | None = None
    momentum: float | None = None
    probe_right: int | None = None
    probe_images: int | None = None
    probe_penalty: float | None = None

    @property
    def probe_top1(self) -> float | None:
        """Return the accuracy of a last layer alone, a fraction; None: none was fitted."""
        return None if self.probe_right is None else self.probe_right / self.images
