"""Settings whose open defaults are filled in: what the training stages receive. See `compress.recipe.defaults`.

Each class narrows the types of its section and has the same fields in the same order, so that a cache key or a
`resolved.yaml` made from it is the same.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from compress.recipe.schema.base import Count
from compress.recipe.schema.deployment import Quantize
from compress.recipe.schema.networks import Candidate
from compress.recipe.schema.train import Schedule, Train


class ResolvedSchedule(Schedule):
    """A schedule with a known warm-up."""

    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0


class ResolvedTrain(Train):
    """Training settings that name their epochs, learning rate and seed. `views` and `threads` may stay null."""

    epochs: Count
    lr: Annotated[float, Field(gt=0)]
    seed: Annotated[int, Field(ge=0)]
    schedule: ResolvedSchedule = ResolvedSchedule()


class ResolvedCandidate(Candidate):
    """A teacher candidate; `train` is null where its checkpoint is used as it is."""

    train: ResolvedTrain | None = None


class ResolvedQat(Quantize):
    """Settings of `scheme: qat` that name their epochs and learning rate."""

    epochs: Count
    lr: Annotated[float, Field(gt=0)]
