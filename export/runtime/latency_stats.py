"""Latency statistics: percentiles, ratios and their intervals from timed rounds.

Standard library, numpy and onnxruntime only; runs on Python 3.8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np

from export.runtime import conditions, session_options
from export.runtime.rounds import Attempt, crowded, disturbances, drift, drop_interrupted, join, two_speeds_note

# Fewest samples behind a percentile. Source: MLPerf loadgen, early stopping of single-stream runs.
P90_SAMPLES, P99_SAMPLES = 64, 662
# Two sessions of one file lie elsewhere in memory. Their ratio was up to 0.9 % from 1 (50 pairs), in every round alike.
SESSION_NOISE = 0.01
_RESAMPLES = 2000


@dataclass(frozen=True)
class ModelLatency:
    """One model at batch 1.

    `samples_ms` is float64 (runs,) in the order they were taken; `rounds` is int64 (runs,), the round of each sample.
    p90 and p99 are None with too few samples.
    """

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
        """Return the `latency_ms` entry of a report."""
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
    """All models, measured in the same rounds.

    Attributes:
        models: the statistics of each model, by name.
        contaminated: whether other processes disturbed the measurement; None if unknown.
        other_cores: mean cores that other processes used meanwhile; None if unknown.
        round_other_cores: the same for each round; None for a round too short to measure it.
        drift: for each model, the median of its last third of rounds over that of its first.
        disturbances: sentences about what makes absolute times doubtful.
        notes: sentences about what else was noticed.
        attempts: how often the measurement was made.
        sha256: for each model, the digest of the bytes that ran.
        interrupted: for each model, how many further runs were dropped because another process took the core.
        unfit: why interrupted runs could not be dropped, so that ratios of times are doubtful, too; else None.
        cpu_round_medians_ms: for each model, the median CPU time of each round; empty where it is not known.
        cpu_ratios: why ratios are those of CPU time, which waiting for the core does not lengthen; None: of times.
    """

    models: dict[str, ModelLatency]
    contaminated: bool | None
    other_cores: float | None
    round_other_cores: tuple[float | None, ...] = ()
    drift: dict[str, float] = field(default_factory=dict)
    disturbances: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    attempts: int = 1
    sha256: dict[str, str] = field(default_factory=dict)
    interrupted: dict[str, int] = field(default_factory=dict)
    unfit: str | None = None
    cpu_round_medians_ms: dict[str, tuple[float, ...]] = field(default_factory=dict)
    cpu_ratios: str | None = None

    def conditions(self) -> dict[str, Any]:
        """Return the `latency` entry of a report: what a reader needs to judge the numbers."""
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
            "cpu_ratios": self.cpu_ratios,
            "attempts": self.attempts,
            "rounds": len(rounds),
            "threads": threads,
            "spinning": session_options(threads).get_session_config_entry("session.intra_op.allow_spinning") != "0",
            "governor": conditions.governor(),
            "cpu_features": conditions.cpu_features(),
            "sha256": dict(self.sha256),
        }


def summarize_attempts(
    tried: Sequence[Attempt],
    threads: int,
    first_run_ms: Mapping[str, float],
    load_ms: Mapping[str, float],
    digests: Mapping[str, str],
) -> LatencyResult:
    """Summarise the attempts at one measurement: the last one alone if it was quiet, else all of them joined.

    Args:
        tried: the attempts, in order.
        threads: that each model ran with.
        first_run_ms: milliseconds of each model's first run, by name.
        load_ms: milliseconds that loading took, by name.
        digests: sha256 of each model's file, by name.
    """
    kept = [tried[-1]] if not disturbances(tried[-1]) else list(tried)
    whole = join(kept)
    joined, interrupted, unfit = drop_interrupted(whole, conditions.too_many_threads(threads))
    cpu = {name: tuple(float(np.median(part)) for part in parts) for name, parts in (whole.cpu or {}).items()}
    measurable = bool(cpu) and all(value > 0 for medians in cpu.values() for value in medians)
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
        cpu_round_medians_ms=cpu,
        cpu_ratios=(unfit or crowded(whole)) if measurable else None,
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


def speedup_with_interval(result: LatencyResult, a: str, b: str, *, seed: int = 0) -> tuple[float, float, float]:
    """Return how many times as long `a` takes as `b`, and the ends of the 95 % interval.

    The value is the median of the per-round ratios of medians; on a crowded machine, of medians of CPU time. The
    interval is a bootstrap over rounds, see `_expand`, and widened by SESSION_NOISE in quadrature, so that a model
    against itself stays at 1 however many rounds there are.
    """
    times = {name: result.models[name].round_medians_ms for name in (a, b)}
    if result.cpu_ratios is not None:
        times = result.cpu_round_medians_ms
    ratios = np.array(times[a]) / np.array(times[b])
    drawn = np.random.default_rng(seed).integers(0, len(ratios), (_RESAMPLES, len(ratios)))
    value = float(np.median(ratios))
    low, high = _expand(np.median(ratios[drawn], axis=1), value, len(ratios))
    floor = SESSION_NOISE * value
    return (
        value,
        value - float(np.hypot(max(value - low, 0.0), floor)),
        value + float(np.hypot(max(high - value, 0.0), floor)),
    )


def p50_interval(result: LatencyResult, name: str, *, seed: int = 0) -> tuple[float, float, float]:
    """Return p50 in ms and the ends of its 95 % interval.

    The bootstrap draws whole rounds, because runs of one round resemble each other, and is expanded for their number.
    """
    model = result.models[name]
    parts = [model.samples_ms[model.rounds == number] for number in range(len(model.round_medians_ms))]
    random = np.random.default_rng(seed)
    medians = [
        np.median(np.concatenate([parts[index] for index in random.integers(0, len(parts), len(parts))]))
        for _ in range(_RESAMPLES)
    ]
    low, high = _expand(np.array(medians), model.p50_ms, len(parts))
    return model.p50_ms, max(low, 0.0), high


def _expand(drawn: np.ndarray, value: float, rounds: int) -> tuple[float, float]:
    """Return the ends of a 95 % interval from a bootstrap over so many rounds.

    The middle 95 % of the resamples covers only 88 % with 8 rounds and 92 % with 20. Its ends are moved away from the
    value as Student's t is wider than the normal distribution, and by sqrt(n / (n - 1)), because the resamples vary
    about their own mean. A test simulates the coverage. Source: Hesterberg 2015, The American Statistician 69, 371-386,
    section 5.3, there as other percentiles.
    """
    low, high = np.percentile(drawn, (2.5, 97.5))
    if rounds < 2:
        return float(low), float(high)
    factor = _student(rounds - 1) / NormalDist().inv_cdf(0.975) * (rounds / (rounds - 1)) ** 0.5
    return value - factor * max(value - float(low), 0.0), value + factor * max(float(high) - value, 0.0)


def _student(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t: exact for one and two degrees, else by Cornish and Fisher's series.

    Source: Abramowitz and Stegun 1964, 26.7.5; off by at most 0.01 with three degrees.
    """
    if degrees < 3:
        return (12.706205, 4.302653)[degrees - 1]
    z = NormalDist().inv_cdf(0.975)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(z + sum(term / degrees ** (power + 1) for power, term in enumerate(terms)))
