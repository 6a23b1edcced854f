"""Latency and memory on this machine, measured so that the numbers can be trusted or are refused.

Standard library, numpy and onnxruntime only; runs on Python 3.8. `python -m export.runtime.latency --memory FILE` is the fresh process behind
`memory`. What happens to a disturbed measurement: it is repeated, `attempts` times in all; the first quiet attempt counts alone; where
none is quiet the rounds of all of them are joined, so that intervals show how far the disturbances reach.
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
from pathlib import Path
from typing import Any

import numpy as np

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

from export.runtime import ExportError, Model, UnavailableError, conditions, isa, runs_on
from export.runtime.latency_stats import LatencyResult, conclude
from export.runtime.rounds import Attempt, disturbances

_MEMORY_RUNS = 10
_LOST = 0.02  # of a run's time, without a core: a run that was interrupted for less counts


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
    """Time every model at batch 1 on varying pictures, uint8 (N, H, W, 3): one process, all loaded, rounds in shuffled order.

    `repeats` timed runs a model and attempt. What is timed is what an application does from pixels to logits. Interleaving cancels what
    CPU accounting cannot see (frequency, neighbours on the same core); runs that lost their core to another process do not count, see
    `rounds.uninterrupted`. `provider`: an execution provider. Raises ExportError.
    """
    pictures = [np.ascontiguousarray(images[index : index + 1]) for index in range(len(images))]
    return _measure(
        models, pictures, lambda picture: picture, threads, warmup, repeats, rounds, seed, attempts, provider
    )


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
    """As `latency`, from the bytes of a picture file to logits; `decode` gives uint8 (H, W, 3) of the model's size. Every run counts.

    Photos differ in size: without the interrupted runs the small ones would be left.
    """
    return _measure(
        models,
        list(photos),
        lambda photo: decode(photo)[None],
        threads,
        warmup,
        repeats,
        rounds,
        seed,
        attempts,
        provider,
        every=True,
    )


def _measure(
    models: Mapping[str, str | Path],
    inputs: list[Any],
    prepare: Callable[[Any], np.ndarray],
    threads: int,
    warmup: int,
    repeats: int,
    rounds: int,
    seed: int,
    attempts: int,
    provider: str | None = None,
    every: bool = False,
) -> LatencyResult:
    if not models or not inputs or repeats < 1 or warmup < 0 or rounds < 1 or attempts < 1:
        raise ExportError("latency needs at least one model, one picture, one round and one run")
    digests = {name: _sha256(path) for name, path in models.items()}
    loaded = {name: Model.load(path, threads, provider) for name, path in models.items()}
    for name, model in loaded.items():
        if not runs_on(model.target, isa()):
            raise ExportError(
                f"{name} was built for {model.target} and this machine is {isa()}: how long it takes here says nothing about that device"
            )
        model.check(prepare(inputs[0]))
    random = np.random.default_rng(seed)
    inputs = [inputs[index] for index in random.permutation(len(inputs))]
    runs = {name: _runner(model, prepare) for name, model in loaded.items()}
    first = {name: float(_time(run, inputs[:1])[0][0]) for name, run in runs.items()}
    for run in runs.values():
        _time(run, [inputs[number % len(inputs)] for number in range(warmup)])
    tried: list[Attempt] = []
    while len(tried) < attempts:
        tried.append(_attempt(runs, inputs, repeats, rounds, random, threads, None if every else _switches(threads)))
        if not disturbances(tried[-1]):
            break
    return conclude(tried, threads, first, {name: model.load_ms for name, model in loaded.items()}, digests)


def _sha256(path: str | Path) -> str:
    if not Path(path).is_file():
        raise UnavailableError(f"{path}: no such file")
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _runner(model: Model, prepare: Callable[[Any], np.ndarray]) -> Callable[[Any], Any]:
    outputs, run, feed = [model.output], model.session.run, model.feed
    return lambda item: run(outputs, feed(prepare(item)))


def _switches(threads: int) -> Callable[[], int] | None:
    """Counts how often this thread, or any of the process where several compute, lost its core to another one; None where the system does not tell.

    Only Linux does: macOS counts a thread that waits by itself as well.
    """
    if not hasattr(resource, "RUSAGE_THREAD"):
        return None
    who = resource.RUSAGE_THREAD if threads == 1 else resource.RUSAGE_SELF
    return lambda: resource.getrusage(who).ru_nivcsw


def _attempt(
    runs: dict[str, Callable[[Any], Any]],
    inputs: list[Any],
    repeats: int,
    rounds: int,
    random: np.random.Generator,
    threads: int,
    switches: Callable[[], int] | None,
) -> Attempt:
    least = _LOST if threads == 1 else -np.inf  # one thread's own time says nothing of the others'
    parts: dict[str, list[np.ndarray]] = {name: [] for name in runs}
    flags: dict[str, list[np.ndarray]] = {name: [] for name in runs}
    loads: list[float | None] = []
    begin = before = conditions.busy_seconds()
    start = since = time.perf_counter()
    for part in np.array_split(np.arange(repeats), min(rounds, repeats)):
        chosen = [inputs[number % len(inputs)] for number in part]
        for name in random.permutation(sorted(runs)):
            times, lost = _time(runs[str(name)], chosen, switches, least)
            parts[str(name)].append(times)
            flags[str(name)].append(lost)
        after, now = conditions.busy_seconds(), time.perf_counter()
        loads.append(conditions.round_load(before, after, now - since))
        before, since = after, now
    wall = since - start
    cores, contaminated = conditions.others(begin, before, wall)
    return Attempt(
        parts, loads, None if cores is None else cores * wall, wall, contaminated, flags if switches else None
    )


def _time(
    run: Callable[[Any], Any], inputs: Sequence[Any], switches: Callable[[], int] | None = None, least: float = _LOST
) -> tuple[np.ndarray, np.ndarray]:
    """(milliseconds of each run, which of them were interrupted: a core was lost, and with it more than `least` of the run's time)."""
    times, lost = np.empty(len(inputs)), np.zeros(len(inputs), dtype=bool)
    clock, busy, count = time.perf_counter_ns, time.thread_time_ns, switches or (lambda: 0)
    for index, item in enumerate(inputs):
        before, used = count(), busy()
        start = clock()
        run(item)
        times[index] = clock() - start
        used = busy() - used
        lost[index] = count() > before and times[index] - used > least * times[index]
    return times / 1e6, lost


def memory(path: str | Path, *, threads: int = 1, provider: str | None = None) -> int | None:
    """Peak resident bytes of a fresh process that loads the model and runs it ten times, interpreter and onnxruntime included.

    None where the kernel does not tell (VmHWM after a reset). Raises ExportError where the child fails.
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
        raise ExportError(
            f"{path}: the process that measures memory failed: {(child.stderr.strip().splitlines() or ['no message'])[-1]}"
        )
    return json.loads(child.stdout)["peak_memory_bytes"]


def _peak_memory(path: str, threads: int, provider: str | None) -> int | None:
    """Peak resident bytes of this process while it loads and runs a model.

    Not ru_maxrss: it survives fork and exec, so every child seems to need what its parent needed.
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
        prog="python -m export.runtime.latency", description="peak resident memory of this process with one model"
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
