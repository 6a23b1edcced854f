"""A silent `session.Progress` for tests."""

from __future__ import annotations

from torch import Tensor


class Quiet:
    """Shows nothing; `said` holds the warnings."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def start_at(self, epoch: int, step: int) -> None: ...
    def step(self, images: int, losses: dict[str, Tensor]) -> None: ...
    def epoch(self, row: dict[str, float]) -> None: ...

    def warn(self, text: str) -> None:
        self.said.append(text)
