"""A student that the workflow trains: the recipe's own, or the baseline."""

from __future__ import annotations

from dataclasses import dataclass

from compress.core.records.base import File
from compress.core.records.training import Network, Trained
from compress.recipe.schema import Distill


@dataclass(frozen=True)
class StudentTask:
    """A student to train: the recipe's own, or the same network without a teacher as the baseline."""

    label: str  # "" for the recipe's own, else "baseline"
    network: Network
    start: str  # the student's `weights` key as the distill stage takes it
    weights: File | None
    method: Distill  # other methods' sections are left out of it, and so of the cache key
    teacher: Trained | None

    @property
    def title(self) -> str:
        """The label of the stages that make its files."""
        return self.label or "student"
