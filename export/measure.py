"""Latency and memory on this machine, measured so that the numbers can be trusted or are refused.

Standard library, numpy and onnxruntime only; runs on Python 3.8. `python -m export.measure --memory FILE` is the fresh process behind
`memory`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.runtime import OUTPUT, ExportError, MissingError, Model

# Fewest samples behind a percentile. Source: MLPerf loadgen, early stopping of single-stream runs.
P90_SAMPLES, P99_SAMPLES = 64, 662
BUSY_CORES = 0.05  # of one core, used by other processes: above it a measurement is contaminated
_TICKS_OF_SLACK = 2  # /proc/stat counts whole ticks
_RESAMPLES = 2000
_MEMORY_RUNS = 10


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
        return {"p50": self.p50_ms, "p90": self.p90_ms, "p99": self.p99_ms, "runs": self.runs, "threads": self.threads, "batch": self.batch}


@dataclass(frozen=True)
class LatencyResult:
    """All models, measured in the same rounds. `other_cores`: mean cores that other processes used meanwhile; None where unknown."""

    models: dict[str, ModelLatency]
    contaminated: bool | None
    other_cores: float | None


def latency(
    models: Mapping[str, str | Path],
    images: np.ndarray,
    *,
    threads: int = 1,
    warmup: int = 50,
    repeats: int = 700,
    rounds: int = 20,
    seed: int = 0,
) -> LatencyResult:
    """Time every model at batch 1 on varying pictures, uint8 (N, H, W, 3): one process, all loaded, rounds in shuffled order.

    `repeats` timed runs a model in total. What is timed is what an application does from pixels to logits. Interleaving cancels what
    CPU accounting cannot see (frequency, neighbours on the same core). Raises ExportError.
    """
    if not models or len(images) == 0 or repeats < 1 or warmup < 0 or rounds < 1:
        raise ExportError("latency needs at least one model, one picture, one round and one run")
    loaded = {name: Model.load(path, threads) for name, path in models.items()}
    for model in loaded.values():
        model.check(images)
    random = np.random.default_rng(seed)
    pictures = [np.ascontiguousarray(images[index : index + 1]) for index in random.permutation(len(images))]
    first = {name: _time(model, pictures[:1])[0] for name, model in loaded.items()}
    for model in loaded.values():
        _time(model, [pictures[run % len(pictures)] for run in range(warmup)])

    samples: dict[str, list[np.ndarray]] = {name: [] for name in loaded}
    before = _busy_seconds()
    start = time.perf_counter()
    for part in np.array_split(np.arange(repeats), min(rounds, repeats)):
        chosen = [pictures[run % len(pictures)] for run in part]
        for name in random.permutation(sorted(loaded)):
            samples[str(name)].append(_time(loaded[str(name)], chosen))
    wall = time.perf_counter() - start
    other_cores, contaminated = _others(before, _busy_seconds(), wall)
    results = {name: _summarise(samples[name], threads, first[name], model.load_ms) for name, model in loaded.items()}
    return LatencyResult(results, contaminated, other_cores)


def _time(model: Model, pictures: list[np.ndarray]) -> np.ndarray:
    """Milliseconds of each run."""
    times = np.empty(len(pictures))
    outputs = [OUTPUT]
    run, feed, clock = model.session.run, model.feed, time.perf_counter_ns
    for index, picture in enumerate(pictures):
        start = clock()
        run(outputs, feed(picture))
        times[index] = clock() - start
    return times / 1e6


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


def _busy_seconds() -> tuple[float, float] | None:
    """CPU seconds used on the cores that this process may use: by everybody, by this process. None without /proc/stat."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
        tick = os.sysconf("SC_CLK_TCK")
        allowed = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    except (OSError, AttributeError, ValueError):
        return None
    total = 0
    for fields in (line.split() for line in lines):
        if fields and fields[0] in allowed:
            user, nice, system, _, _, irq, softirq, steal = (int(value) for value in fields[1:9])
            total += user + nice + system + irq + softirq + steal
    own = os.times()
    return total / tick, own.user + own.system


def _others(before: tuple[float, float] | None, after: tuple[float, float] | None, wall: float) -> tuple[float | None, bool | None]:
    if before is None or after is None or wall <= 0:
        return None, None
    others = max(0.0, (after[0] - before[0]) - (after[1] - before[1]))
    slack = _TICKS_OF_SLACK / os.sysconf("SC_CLK_TCK")
    return others / wall, others > BUSY_CORES * wall + slack


def ratio(result: LatencyResult, a: str, b: str, *, seed: int = 0) -> tuple[float, float, float]:
    """How many times `a` takes as long as `b`: median of the per-round ratios of medians, and its 95 % interval (bootstrap over rounds)."""
    ratios = np.array(result.models[a].round_medians_ms) / np.array(result.models[b].round_medians_ms)
    drawn = np.random.default_rng(seed).integers(0, len(ratios), (_RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(ratios[drawn], axis=1), (2.5, 97.5))
    return float(np.median(ratios)), float(low), float(high)


def p50_interval(result: LatencyResult, name: str, *, seed: int = 0) -> tuple[float, float, float]:
    """p50 in ms and its 95 % interval: whole rounds are drawn again, because runs of one round resemble each other."""
    model = result.models[name]
    parts = [model.samples_ms[model.rounds == number] for number in range(len(model.round_medians_ms))]
    random = np.random.default_rng(seed)
    medians = [np.median(np.concatenate([parts[index] for index in random.integers(0, len(parts), len(parts))])) for _ in range(_RESAMPLES)]
    low, high = np.percentile(medians, (2.5, 97.5))
    return model.p50_ms, float(low), float(high)


def memory(path: str | Path, *, threads: int = 1) -> int | None:
    """Peak resident bytes of a fresh process that loads the model and runs it ten times, interpreter and onnxruntime included.

    None where the kernel does not tell (VmHWM after a reset). Raises ExportError where the child fails.
    """
    if not Path(path).is_file():
        raise MissingError(f"{path}: no such file")
    package = str(Path(__file__).resolve().parent.parent)
    command = [sys.executable, "-B", "-m", "export.measure", "--memory", str(Path(path).resolve()), "--threads", str(threads)]
    child = subprocess.run(command, cwd=package, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": package})
    if child.returncode != 0:
        raise ExportError(f"{path}: the process that measures memory failed: {(child.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads(child.stdout)["peak_memory_bytes"]


def _peak_memory(path: str, threads: int) -> int | None:
    """Peak resident bytes of this process while it loads and runs a model.

    Not ru_maxrss: it survives fork and exec, so every child seems to need what its parent needed.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to what is resident now
    except OSError:
        return None
    model = Model.load(path, threads)
    size = model.contract.image_size
    random = np.random.default_rng(0)
    for _ in range(_MEMORY_RUNS):
        model.run(random.integers(0, 256, (1, size, size, 3), dtype=np.uint8))
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def main() -> int:
    """Print the peak memory of one model as JSON."""
    parser = argparse.ArgumentParser(prog="python -m export.measure", description="peak resident memory of this process with one model")
    parser.add_argument("--memory", metavar="FILE", required=True)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    try:
        print(json.dumps({"peak_memory_bytes": _peak_memory(arguments.memory, arguments.threads)}))
    except ExportError as error:
        print(error, file=sys.stderr)
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
