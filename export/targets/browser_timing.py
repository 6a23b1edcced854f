"""The times that a page measured, and what other processes did meanwhile: the browser's own work is not theirs."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.runtime import conditions
from export.runtime.rounds import Attempt, disturbances


@dataclass(frozen=True)
class Began:
    """When timing began. `busy`: CPU seconds of everybody, and of this process with the browser's; None where the kernel does not tell."""

    session: int
    at: float
    busy: conditions.Busy | None


def begin(session: int) -> Began:
    """`session`: the browser's process, which leads a session of its own."""
    return Began(session, time.perf_counter(), _busy(session))


def end(began: Began, rounds: dict[str, list[list[float]]]) -> Attempt:
    """The attempt that has just ended; `rounds`: milliseconds by file and round."""
    wall, after = time.perf_counter() - began.at, _busy(began.session)
    cores, contaminated = conditions.others(began.busy, after, wall)
    parts = {name: [np.asarray(part, dtype=np.float64) for part in values] for name, values in rounds.items()}
    count = len(next(iter(parts.values())))
    return Attempt(parts, [None] * count, None if cores is None else cores * wall, wall, contaminated)


def disturbed(attempt: Attempt) -> bool:
    """Whether it should be repeated."""
    return bool(disturbances(attempt))


def _busy(session: int) -> conditions.Busy | None:
    before = conditions.busy_seconds()
    if before is None:
        return None
    return before[0], before[1] + _session_seconds(session)


def _session_seconds(session: int, proc: Path = Path("/proc")) -> float:
    """CPU seconds of all living processes of a session."""
    ticks = 0
    for path in proc.glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        if int(fields[3]) == session:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
