"""A sustained run: whether the last minute takes as long as the first, and how hot the device gets.

Standard library, numpy and onnxruntime only; runs on Python 3.8.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.runtime import OUTPUT, ExportError, Model, conditions

# The first and the last window are compared; of short runs, the first and the last tenth.
WINDOW_SECONDS = 60.0
SLICES_PER_WINDOW = 10
# From this change on, the sentence reports slower or faster.
_MIN_CHANGE = 0.05


@dataclass(frozen=True)
class Sustained:
    """The result of a sustained run.

    `slices_ms` are medians of equal stretches of the whole run. `first` and `last` are the machine's state before and
    after.
    """

    seconds: float
    window_seconds: float
    runs: int
    threads: int
    first_p50_ms: float
    last_p50_ms: float
    slices_ms: tuple[float, ...]
    other_cores: float | None
    contaminated: bool | None
    first: dict[str, Any]
    last: dict[str, Any]

    @property
    def ratio(self) -> float:
        """Return the time of the last window over that of the first."""
        return self.last_p50_ms / self.first_p50_ms

    @property
    def throttled(self) -> int | None:
        """Return how often the processor throttled meanwhile; None if the host does not count it."""
        before, after = self.first["throttled"], self.last["throttled"]
        return None if before is None or after is None else after - before

    def sentence(self) -> str:
        """Return what happened in words, with what the host shows of the reason."""
        name = "minute" if self.window_seconds == WINDOW_SECONDS else f"{self.window_seconds:.3g} s"
        change = self.ratio - 1
        kind = "as fast"
        if abs(change) > _MIN_CHANGE:
            kind = f"{abs(change):.0%} {'slower' if change > 0 else 'faster'}"
        parts = [
            f"After {self.seconds:.3g} s without a pause it is {kind}: {self.first_p50_ms:.3g} ms in the first {name}, "
            f"{self.last_p50_ms:.3g} in the last"
        ]
        heat = self.first["temperature_c"], self.last["temperature_c"]
        parts.append("this host shows no temperature" if None in heat else f"{heat[0]:.0f} to {heat[1]:.0f} degrees C")
        parts.append(
            "nor whether it throttles"
            if self.throttled is None and None in heat
            else "this host does not count throttling"
            if self.throttled is None
            else f"throttled {self.throttled} times"
        )
        if self.contaminated:
            parts.append(f"other processes used {self.other_cores:.2f} cores meanwhile")
        return "; ".join(parts).replace("; nor", ", nor") + "."

    def summary(self) -> dict[str, Any]:
        """Return the `sustained` entry of a report's `latency`."""
        names = (
            "seconds",
            "window_seconds",
            "runs",
            "threads",
            "first_p50_ms",
            "last_p50_ms",
            "ratio",
            "throttled",
            "other_cores",
            "contaminated",
        )
        states = {
            f"{name}_{kind}": getattr(self, kind)[name]
            for name in ("temperature_c", "clock_mhz")
            for kind in ("first", "last")
        }
        return {
            **{name: getattr(self, name) for name in names},
            **states,
            "slices_ms": list(self.slices_ms),
            "sentence": self.sentence(),
        }


def sustained(
    path: str | Path, images: np.ndarray, seconds: float, *, threads: int = 1, provider: str | None = None
) -> Sustained:
    """Run a model at batch 1 without a pause.

    Args:
        path: the model's file.
        images: uint8 (N, H, W, 3), at least one; the runs cycle through them.
        seconds: how long to run, above 0.
        threads: intra-op threads.
        provider: an execution provider; None: the CPU.

    Raises:
        ExportError: the model cannot be loaded, or there is nothing to run.
    """
    if seconds <= 0 or len(images) == 0:
        raise ExportError("a sustained run needs at least one image and more than 0 seconds")
    model = Model.load(path, threads, provider)
    model.check(images)
    single = [np.ascontiguousarray(images[index : index + 1]) for index in range(len(images))]
    window = min(WINDOW_SECONDS, seconds / 10)
    model.session.run([OUTPUT], model.feed(single[0]))  # the first run pays for allocations
    first, before, start = conditions.state(), conditions.busy_seconds(), time.perf_counter()
    early: list[np.ndarray] = []
    late: deque[np.ndarray] = deque(maxlen=SLICES_PER_WINDOW)
    medians: list[float] = []
    runs = 0
    while (now := time.perf_counter()) < start + seconds:
        end = min(start + (len(medians) + 1) * window / SLICES_PER_WINDOW, start + seconds)
        part = _slice(model, single, runs, end, now)
        runs += len(part)
        medians.append(float(np.median(part)))
        late.append(part)
        if len(early) < SLICES_PER_WINDOW:
            early.append(part)
    wall = time.perf_counter() - start
    cores, contaminated = conditions.load_of_others(before, conditions.busy_seconds(), wall)
    return Sustained(
        seconds=wall,
        window_seconds=window,
        runs=runs,
        threads=threads,
        first_p50_ms=float(np.median(np.concatenate(early))),
        last_p50_ms=float(np.median(np.concatenate(list(late)))),
        slices_ms=tuple(round(value, 4) for value in medians),
        other_cores=cores,
        contaminated=contaminated,
        first=first,
        last=conditions.state(),
    )


def _slice(model: Model, single: list[np.ndarray], done: int, end: float, now: float) -> np.ndarray:
    """Run until `end`, at least once; return the milliseconds of each run."""
    times: list[float] = []
    while not times or now < end:
        begin = time.perf_counter()
        model.session.run([OUTPUT], model.feed(single[(done + len(times)) % len(single)]))
        now = time.perf_counter()
        times.append((now - begin) * 1e3)
    return np.array(times)
