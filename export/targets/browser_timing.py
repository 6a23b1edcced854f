"""Times measured by a page, and the load of other processes meanwhile, without the browser's own work."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.runtime import conditions
from export.runtime.rounds import Attempt, disturbances


@dataclass(frozen=True)
class TimingStart:
    """When timing began.

    `busy` are CPU seconds of all processes, and of this process with the browser's; None if the kernel does not count
    them.
    """

    session: int
    at: float
    busy: conditions.Busy | None


def begin(session: int) -> TimingStart:
    """Note the start of a timing. `session` is the browser's process, which leads a session of its own."""
    return TimingStart(session, time.perf_counter(), _busy(session))


def end(began: TimingStart, rounds: dict[str, list[list[float]]]) -> Attempt:
    """Return the attempt that has just ended. `rounds` are milliseconds by file and round."""
    wall, after = time.perf_counter() - began.at, _busy(began.session)
    cores, contaminated = conditions.load_of_others(began.busy, after, wall)
    parts = {name: [np.asarray(part, dtype=np.float64) for part in values] for name, values in rounds.items()}
    count = len(next(iter(parts.values())))
    return Attempt(parts, [None] * count, None if cores is None else cores * wall, wall, contaminated)


def disturbed(attempt: Attempt) -> bool:
    """Return whether an attempt should be repeated."""
    return bool(disturbances(attempt))


def _busy(session: int) -> conditions.Busy | None:
    before = conditions.busy_seconds()
    if before is None:
        return None
    return before[0], before[1] + _session_seconds(session)


def _session_seconds(session: int, proc: Path = Path("/proc")) -> float:
    """Return the CPU seconds of all living processes of a session."""
    ticks = 0
    for path in proc.glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        if int(fields[3]) == session:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
