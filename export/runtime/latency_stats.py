"""What timed rounds say: percentiles, ratios and their intervals. Standard library, numpy and onnxruntime only; runs on Python 3.8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from export.runtime import conditions, session_options
from export.runtime.rounds import Attempt, disturbances, drift, join, two_speeds_note, uninterrupted

# Fewest samples behind a percentile. Source: MLPerf loadgen, early stopping of single-stream runs.
P90_SAMPLES, P99_SAMPLES = 64, 662
# Two sessions of one file lie elsewhere in memory: their ratio was up to 0.9 % from 1 (50 pairs), in every round alike.
PLACEMENT = 0.01
_RESAMPLES = 2000


@dataclass(frozen=True)
class ModelLatency:
    """One model at batch 1. `samples_ms` float64 (runs,) in the order they were taken, `rounds` int64 (runs,) the round of each."""

    p50_ms: float
    p90_ms: float | None
    p99_ms: float | None
    runs: int
    threads: int
    batch: int
    first_run_ms: float
    load_ms: float
    round_medians_ms: tuple[float, ...]
    samples_ms: np.ndarray
    rounds: np.ndarray

    def summary(self) -> dict[str, Any]:
        """The `latency_ms` entry of a report."""
        return {
            "p50": self.p50_ms,
            "p90": self.p90_ms,
            "p99": self.p99_ms,
            "runs": self.runs,
            "threads": self.threads,
            "batch": self.batch,
        }


@dataclass(frozen=True)
class LatencyResult:
    """All models, measured in the same rounds. `other_cores`: mean cores that other processes used meanwhile; None where unknown.

    `round_other_cores`: the same for each round (None: too short to tell). `drift`: for each model the median of its last third of rounds
    over that of its first. `disturbances` and `notes` are sentences: the first kind makes absolute times doubtful. `interrupted`: for each model how
    many further runs were left out because another process took the core. `unfit`: why that could not be done, so that ratios are doubtful, too.
    """

    models: dict[str, ModelLatency]
    contaminated: bool | None
    other_cores: float | None
    round_other_cores: tuple[float | None, ...] = ()
    drift: dict[str, float] = field(default_factory=dict)
    disturbances: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    attempts: int = 1
    sha256: dict[str, str] = field(default_factory=dict)  # of the bytes that ran
    interrupted: dict[str, int] = field(default_factory=dict)
    unfit: str | None = None

    def conditions(self) -> dict[str, Any]:
        """The `latency` entry of a report: everything that is needed to believe the numbers, or not to."""
        rounds = [None if cores is None else round(cores, 3) for cores in self.round_other_cores]
        threads = next(iter(self.models.values())).threads
        return {
            "contaminated": self.contaminated,
            "other_cores": self.other_cores,
            "round_other_cores": rounds,
            "drift": {name: round(value, 4) for name, value in self.drift.items()},
            "disturbances": list(self.disturbances),
            "notes": list(self.notes),
            "interrupted": dict(self.interrupted),
            "unfit": self.unfit,
            "attempts": self.attempts,
            "rounds": len(rounds),
            "threads": threads,
            "spinning": session_options(threads).get_session_config_entry("session.intra_op.allow_spinning") != "0",
            "governor": conditions.governor(),
            "cpu_features": conditions.cpu_features(),
            "sha256": dict(self.sha256),
        }


def conclude(
    tried: Sequence[Attempt],
    threads: int,
    first_run_ms: Mapping[str, float],
    load_ms: Mapping[str, float],
    digests: Mapping[str, str],
) -> LatencyResult:
    """What the attempts at one measurement say: the last one alone if it was quiet, else all of them joined."""
    kept = [tried[-1]] if not disturbances(tried[-1]) else list(tried)
    joined, interrupted, unfit = uninterrupted(join(kept), conditions.too_many_threads(threads))
    names = list(joined.parts)
    medians = {name: [float(np.median(part)) for part in joined.parts[name]] for name in names}
    return LatencyResult(
        models={name: _summarise(joined.parts[name], threads, first_run_ms[name], load_ms[name]) for name in names},
        contaminated=joined.contaminated,
        other_cores=None if joined.other_seconds is None else joined.other_seconds / joined.wall,
        round_other_cores=tuple(joined.round_other_cores),
        drift={name: value for name in names if (value := drift(medians[name])) is not None},
        disturbances=disturbances(joined),
        notes=tuple(note for name in names if (note := two_speeds_note(name, medians[name])) is not None),
        attempts=len(tried),
        sha256=dict(digests),
        interrupted=interrupted,
        unfit=unfit,
    )


def _summarise(parts: list[np.ndarray], threads: int, first_run_ms: float, load_ms: float) -> ModelLatency:
    values = np.concatenate(parts)
    return ModelLatency(
        p50_ms=float(np.median(values)),
        p90_ms=float(np.percentile(values, 90)) if len(values) >= P90_SAMPLES else None,
        p99_ms=float(np.percentile(values, 99)) if len(values) >= P99_SAMPLES else None,
        runs=len(values),
        threads=threads,
        batch=1,
        first_run_ms=float(first_run_ms),
        load_ms=load_ms,
        round_medians_ms=tuple(float(np.median(part)) for part in parts),
        samples_ms=values,
        rounds=np.repeat(np.arange(len(parts)), [len(part) for part in parts]),
    )


def ratio(result: LatencyResult, a: str, b: str, *, seed: int = 0) -> tuple[float, float, float]:
    """How many times `a` takes as long as `b`: median of the per-round ratios of medians, and its 95 % interval.

    Bootstrap over rounds, widened by PLACEMENT in quadrature, so that a model against itself stays at 1 however many rounds there are.
    """
    ratios = np.array(result.models[a].round_medians_ms) / np.array(result.models[b].round_medians_ms)
    drawn = np.random.default_rng(seed).integers(0, len(ratios), (_RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(ratios[drawn], axis=1), (2.5, 97.5))
    value = float(np.median(ratios))
    floor = PLACEMENT * value
    return (
        value,
        value - float(np.hypot(max(value - low, 0.0), floor)),
        value + float(np.hypot(max(high - value, 0.0), floor)),
    )


def p50_interval(result: LatencyResult, name: str, *, seed: int = 0) -> tuple[float, float, float]:
    """p50 in ms and its 95 % interval: whole rounds are drawn again, because runs of one round resemble each other."""
    model = result.models[name]
    parts = [model.samples_ms[model.rounds == number] for number in range(len(model.round_medians_ms))]
    random = np.random.default_rng(seed)
    medians = [
        np.median(np.concatenate([parts[index] for index in random.integers(0, len(parts), len(parts))]))
        for _ in range(_RESAMPLES)
    ]
    low, high = np.percentile(medians, (2.5, 97.5))
    return model.p50_ms, float(low), float(high)
