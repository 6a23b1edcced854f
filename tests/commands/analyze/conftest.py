"""The tiny networks of the stages' tests: `compress analyze` reads such networks from the cache."""

from __future__ import annotations

from tests.stages.conftest import (  # noqa: F401
    context,
    data_config,
    dhkd,
    distilled,
    network,
    prepared,
    stripped,
    train,
    trained_teacher,
    training,
)
