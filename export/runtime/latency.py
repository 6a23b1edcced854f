"""Latency and memory on this machine, measured so that the numbers can be trusted or are refused.

A disturbed measurement is repeated, up to `attempts` times in all. The first quiet attempt counts alone; if none is
quiet, the rounds of all attempts are joined, so that the intervals show how far the disturbances reach.

Standard library, numpy and onnxruntime only; runs on Python 3.8. `python -m export.runtime.latency --memory FILE` is
the fresh process behind `memory`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

from export.runtime import ExportError, Model, UnavailableError, conditions, isa, runs_on
from export.runtime.latency_stats import LatencyResult, summarize_attempts
from export.runtime.rounds import Attempt, disturbances

_MEMORY_RUNS = 10
# A run counts as interrupted if it was without a core for more than this share of its time.
_LOST_SHARE = 0.02


def latency(
    models: Mapping[str, str | Path],
    images: np.ndarray,
    *,
    threads: int = 1,
    warmup: int = 50,
    repeats: int = 700,
    rounds: int = 20,
    seed: int = 0,
    attempts: int = 1,
    provider: str | None = None,
) -> LatencyResult:
    """Time every model at batch 1, from pixels to logits, as an application would run it.

    All models are loaded in one process and take turns in shuffled rounds. Interleaving cancels what CPU accounting
    cannot see (frequency, neighbours on the same core). Runs that lost their core to another process do not count, see
    `rounds.drop_interrupted`.

    Args:
        models: paths by name.
        images: uint8 (N, H, W, 3); the runs cycle through them.
        threads: intra-op threads.
        warmup: untimed runs a model.
        repeats: timed runs a model and attempt.
        rounds: rounds that the runs are split into.
        seed: of the order of images and models.
        attempts: how often a disturbed measurement is made, at most.
        provider: an execution provider; None: the CPU.

    Raises:
        ExportError: there is nothing to time, or a model was built for another instruction set.
    """
    single = [np.ascontiguousarray(images[index : index + 1]) for index in range(len(images))]
    plan = _Plan(threads, warmup, repeats, rounds, seed, attempts, provider)
    return _measure(models, single, lambda image: image, plan)


def photo_latency(
    models: Mapping[str, str | Path],
    photos: Sequence[bytes],
    decode: Callable[[bytes], np.ndarray],
    *,
    threads: int = 1,
    warmup: int = 3,
    repeats: int = 72,
    rounds: int = 8,
    seed: int = 0,
    attempts: int = 1,
    provider: str | None = None,
) -> LatencyResult:
    """Time every model as `latency` does, from the bytes of a photo to logits.

    Every run counts. Photos differ in size, and the small ones are interrupted less often: dropping interrupted runs
    would favour them.

    Args:
        models: paths by name.
        photos: contents of image files.
        decode: returns uint8 (H, W, 3) of the model's size for the contents of a file.
        threads: see `latency`, as for all that follow.
        warmup: untimed runs a model.
        repeats: timed runs a model and attempt.
        rounds: rounds that the runs are split into.
        seed: of the order of photos and models.
        attempts: how often a disturbed measurement is made, at most.
        provider: an execution provider; None: the CPU.
    """
    plan = _Plan(threads, warmup, repeats, rounds, seed, attempts, provider, keep_interrupted=True)
    return _measure(models, list(photos), lambda photo: decode(photo)[None], plan)


@dataclass(frozen=True)
class _Plan:
    """The arguments of `latency`. With `keep_interrupted`, runs that lost their core count."""

    threads: int
    warmup: int
    repeats: int
    rounds: int
    seed: int
    attempts: int
    provider: str | None
    keep_interrupted: bool = False


def _measure(
    models: Mapping[str, str | Path], inputs: list[Any], prepare: Callable[[Any], np.ndarray], plan: _Plan
) -> LatencyResult:
    if not models or not inputs or plan.repeats < 1 or plan.warmup < 0 or plan.rounds < 1 or plan.attempts < 1:
        raise ExportError("latency needs at least one model, one image, one round and one run")
    digests = {name: _sha256(path) for name, path in models.items()}
    loaded = {name: Model.load(path, plan.threads, plan.provider) for name, path in models.items()}
    for name, model in loaded.items():
        if not runs_on(model.target, isa()):
            raise ExportError(
                f"{name} was built for {model.target} and this machine is {isa()}: its latency here says nothing "
                "about that device"
            )
        model.check(prepare(inputs[0]))
    random = np.random.default_rng(plan.seed)
    inputs = [inputs[index] for index in random.permutation(len(inputs))]
    runs = {name: _runner(model, prepare) for name, model in loaded.items()}
    first = {name: float(_time(run, inputs[:1])[0][0]) for name, run in runs.items()}
    for run in runs.values():
        _time(run, [inputs[number % len(inputs)] for number in range(plan.warmup)])
    tried: list[Attempt] = []
    while len(tried) < plan.attempts:
        tried.append(_attempt(runs, inputs, plan, random))
        if not disturbances(tried[-1]):
            break
    return summarize_attempts(
        tried, plan.threads, first, {name: model.load_ms for name, model in loaded.items()}, digests
    )


def _sha256(path: str | Path) -> str:
    if not Path(path).is_file():
        raise UnavailableError(f"{path}: no such file")
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _runner(model: Model, prepare: Callable[[Any], np.ndarray]) -> Callable[[Any], Any]:
    outputs, run, feed = [model.output], model.session.run, model.feed
    return lambda item: run(outputs, feed(prepare(item)))


def _switches(threads: int) -> Callable[[], int] | None:
    """Return a counter of how often this thread lost its core to another one, or None if the system has none.

    With several threads it counts for the whole process. Only Linux qualifies: macOS also counts a thread that waits by
    itself.
    """
    if not hasattr(resource, "RUSAGE_THREAD"):
        return None
    who = resource.RUSAGE_THREAD if threads == 1 else resource.RUSAGE_SELF
    return lambda: resource.getrusage(who).ru_nivcsw


def _attempt(
    runs: dict[str, Callable[[Any], Any]], inputs: list[Any], plan: _Plan, random: np.random.Generator
) -> Attempt:
    threads, switches = plan.threads, None if plan.keep_interrupted else _switches(plan.threads)
    least = _LOST_SHARE if threads == 1 else -np.inf  # one thread's own time does not include the others'
    parts: dict[str, list[np.ndarray]] = {name: [] for name in runs}
    flags: dict[str, list[np.ndarray]] = {name: [] for name in runs}
    own: dict[str, list[np.ndarray]] = {name: [] for name in runs}
    loads: list[float | None] = []
    begin = before = conditions.busy_seconds()
    start = since = time.perf_counter()
    for part in np.array_split(np.arange(plan.repeats), min(plan.rounds, plan.repeats)):
        chosen = [inputs[number % len(inputs)] for number in part]
        for name in random.permutation(sorted(runs)):
            times, lost, used = _time(runs[str(name)], chosen, switches, least)
            parts[str(name)].append(times)
            flags[str(name)].append(lost)
            own[str(name)].append(used)
        after, now = conditions.busy_seconds(), time.perf_counter()
        loads.append(conditions.round_load(before, after, now - since))
        before, since = after, now
    wall = since - start
    cores, contaminated = conditions.load_of_others(begin, before, wall)
    others = None if cores is None else cores * wall
    # Another provider's processor, and other threads, do not show in this thread's CPU time.
    cpu = own if threads == 1 and plan.provider is None else None
    return Attempt(parts, loads, others, wall, contaminated, flags if switches else None, cpu)


def _time(
    run: Callable[[Any], Any],
    inputs: Sequence[Any],
    switches: Callable[[], int] | None = None,
    least: float = _LOST_SHARE,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each run's milliseconds, whether it was interrupted for over `least` of them, and its CPU milliseconds."""
    times, lost, own = np.empty(len(inputs)), np.zeros(len(inputs), dtype=bool), np.empty(len(inputs))
    clock, busy, count = time.perf_counter_ns, time.thread_time_ns, switches or (lambda: 0)
    for index, item in enumerate(inputs):
        before, used = count(), busy()
        start = clock()
        run(item)
        times[index] = clock() - start
        own[index] = used = busy() - used
        lost[index] = count() > before and times[index] - used > least * times[index]
    return times / 1e6, lost, own / 1e6


def memory(path: str | Path, *, threads: int = 1, provider: str | None = None) -> int | None:
    """Return the peak resident bytes of a fresh process that loads the model and runs it ten times.

    The interpreter and onnxruntime are included. None if the kernel cannot reset VmHWM. Raises ExportError if the child
    fails.
    """
    if not Path(path).is_file():
        raise UnavailableError(f"{path}: no such file")
    package = str(Path(__file__).resolve().parents[2])
    command = [
        sys.executable,
        "-B",
        "-m",
        "export.runtime.latency",
        "--memory",
        str(Path(path).resolve()),
        "--threads",
        str(threads),
    ]
    command += ["--provider", provider] if provider else []
    child = subprocess.run(
        command, cwd=package, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": package}
    )
    if child.returncode != 0:
        reason = (child.stderr.strip().splitlines() or ["no message"])[-1]
        raise ExportError(f"{path}: the process that measures memory failed: {reason}")
    peak: int | None = json.loads(child.stdout)["peak_memory_bytes"]
    return peak


def _peak_memory(path: str, threads: int, provider: str | None) -> int | None:
    """Return the peak resident bytes of this process while it loads and runs a model.

    ru_maxrss would not do: it survives fork and exec, so every child seems to need what its parent needed.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to what is resident now
    except OSError:
        return None
    model = Model.load(path, threads, provider)
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
    parser = argparse.ArgumentParser(
        prog="python -m export.runtime.latency",
        description="print the peak resident memory of this process with one model",
    )
    parser.add_argument("--memory", metavar="FILE", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--provider")
    arguments = parser.parse_args()
    try:
        print(json.dumps({"peak_memory_bytes": _peak_memory(arguments.memory, arguments.threads, arguments.provider)}))
    except ExportError as error:
        print(error, file=sys.stderr)
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
