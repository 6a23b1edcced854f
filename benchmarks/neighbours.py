"""Training speed beside other busy processes, for several settings of OpenMP's threads.

    python benchmarks/neighbours.py

Runs on a Linux CPU for three to six minutes. Measured are steps of DHKD into MobileNetV2 (batch 64, the teacher's
logits cached) in a process of its own, alone and beside one and two processes that compute without a pause, in turns
over all settings. PyTorch's Linux wheels bring GNU's libgomp, so KMP_ variables have no effect. Between two loops idle
threads spin before they sleep, and GOMP_SPINCOUNT sets how often. By default libgomp spins for milliseconds, which a
shared machine cannot spare. `compress/cli/main.py` sets it unless the environment already does.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import click
import result_file
import roofline
import torch

from compress.core.malloc import keep_freed_memory
from export.runtime import host

SETTINGS: dict[str, dict[str, str]] = {
    "libgomp's own": {},
    "GOMP_SPINCOUNT=100000": {"GOMP_SPINCOUNT": "100000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
READ = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_CPU_AFFINITY", "OMP_PROC_BIND")
NEIGHBOURS, BATCH = (0, 1, 2), 64


@click.command()
@click.option("--student", default="mobilenet_v2", show_default=True)
@click.option("--rounds", default=2, show_default=True, type=click.IntRange(1))
@click.option("--seconds", default=2.0, show_default=True, help="of training in each measurement")
@click.option(
    "--setting", "chosen", multiple=True, type=click.Choice(list(SETTINGS)), help="more than once; default: all"
)
@click.option("--out", default=result_file.RESULTS / "neighbours.json", type=click.Path(path_type=Path))
@click.option("--worker", is_flag=True, hidden=True, help="train and print images per second")
def main(student: str, rounds: int, seconds: float, chosen: tuple[str, ...], out: Path, worker: bool) -> None:
    """Measure, print and write."""
    if worker:
        print(_speed(student, seconds))
        return
    settings = {name: SETTINGS[name] for name in chosen or SETTINGS}
    speeds = {name: {count: [] for count in NEIGHBOURS} for name in settings}  # type: dict[str, dict[int, list[float]]]
    for _ in range(rounds):
        for count in NEIGHBOURS:
            busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
            try:
                for name, variables in settings.items():
                    speeds[name][count].append(_started(student, seconds, variables))
            finally:
                for process in busy:
                    process.kill()
                    process.wait()
    print(f"{'images/s beside ... busy processes':<40}" + "".join(f"{count:>22}" for count in NEIGHBOURS))
    for name, found in speeds.items():
        print(
            f"{name:<40}"
            + "".join(
                f"{statistics.median(each):>8.0f} [{min(each):4.0f}, {max(each):4.0f}]" for each in found.values()
            )
        )
    rows = {
        name: {str(count): {"median": statistics.median(each), "each": each} for count, each in found.items()}
        for name, found in speeds.items()
    }
    content = {
        "command": result_file.command("neighbours.py"),
        "unit": "pictures/s",
        "student": student,
        "batch": BATCH,
        "rows": rows,
        "environment": {**host(), "torch": torch.__version__, "threads": torch.get_num_threads()},
    }
    result_file.write(out, content)
    print(f"written: {out}")


def _started(student: str, seconds: float, variables: dict[str, str]) -> float:
    environment = {**{name: value for name, value in os.environ.items() if name not in READ}, **variables}
    command = [
        sys.executable,
        str(Path(__file__).resolve()),
        "--worker",
        "--student",
        student,
        "--seconds",
        str(seconds),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"training ended with {done.returncode}: {done.stderr.strip()}")
    return float(done.stdout)


def _speed(student: str, seconds: float) -> float:
    """Return images per second, after an untimed step (on a busy machine a step can take seconds)."""
    keep_freed_memory()
    step, batch = roofline.step_of(student, "cpu"), roofline.batch_of(BATCH, "cpu")
    step(batch)
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        step(batch)
        count += 1
    return count * BATCH / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
