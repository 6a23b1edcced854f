"""Memory of a whole `compress run`: the largest process, all processes together, and the stage with the peak.

    python benchmarks/memory.py recipes/mobilenet.yaml

Linux only. Runs the recipe from nothing in processes of its own. `VmHWM`, the kernel's high-water mark of resident
memory, gives the exact peak of each process; all processes together are summed every 50 ms.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import click
import result_file
import torch

from export.runtime import host

# Bytes that the flagship may take.
LIMIT = 1_500_000_000
SECONDS_BETWEEN_SUMS = 0.05


@click.command()
@click.argument("path", type=click.Path(path_type=Path, exists=True))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="as for compress run")
@click.option(
    "--artifacts", type=click.Path(path_type=Path), help="an empty folder that keeps the run; default: a temporary one"
)
@click.option("--out", default=result_file.RESULTS / "memory.json", type=click.Path(path_type=Path))
def main(path: Path, overrides: tuple[str, ...], artifacts: Path | None, out: Path) -> None:
    """Run, print and write. Exit with 1 if the peak is over the limit."""
    if artifacts is not None and artifacts.is_dir() and any(artifacts.iterdir()):
        raise SystemExit(f"{artifacts} is not empty: a reused stage takes no memory")
    changes = [part for one in overrides for part in ("--set", one)]
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "compress", "run", str(path), "--artifacts", str(artifacts or folder), *changes],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        said = ["start"]
        reader = threading.Thread(target=_follow, args=(process, said))
        reader.start()
        stages, largest = _watch(process, said)
        reader.join()
    if process.returncode not in (0, 5, 6):
        raise SystemExit(f"compress run ended with {process.returncode}")
    peak, together = max(largest.values()), max(stages.values())
    for stage, value in stages.items():
        print(f"{stage:<32}{value / 1e6:8.0f} MB")
    print(
        f"largest process {peak / 1e6:.0f} MB, {peak / LIMIT:.2f}x the limit of {LIMIT / 1e6:.0f} MB; "
        f"all processes together {together / 1e6:.0f} MB"
    )
    content = {
        "command": f"python benchmarks/memory.py {path}" + "".join(f" --set {one}" for one in overrides),
        "unit": "bytes",
        "peak_of_largest_process": peak,
        "peak_of_all_together": together,
        "limit": LIMIT,
        "stages": stages,
        "environment": {**host(), "torch": torch.__version__},
    }
    result_file.write(out, content)
    print(f"written: {out}")
    raise SystemExit(peak > LIMIT)


def _follow(process: subprocess.Popen[str], said: list[str]) -> None:
    """Append each stage that the run reports as running."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.rstrip().endswith(" running"):
            said.append(line.removesuffix(" running\n").strip())


def _watch(process: subprocess.Popen[str], said: list[str]) -> tuple[dict[str, int], dict[int, int]]:
    """Return the largest sum of resident memory by stage, and VmHWM by process, when the run has ended."""
    stages: dict[str, int] = {}
    largest: dict[int, int] = {}
    while process.poll() is None:
        total = 0
        for pid in (process.pid, *_descendants(process.pid)):
            now, most = _resident(pid)
            total += now
            largest[pid] = max(largest.get(pid, 0), most)
        stages[said[-1]] = max(stages.get(said[-1], 0), total)
        time.sleep(SECONDS_BETWEEN_SUMS)
    return stages, largest


def _descendants(pid: int) -> Iterator[int]:
    try:
        children = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except OSError:  # it has just ended
        return
    for child in children:
        yield child
        yield from _descendants(child)


def _resident(pid: int) -> tuple[int, int]:
    """Return the bytes of resident memory now and at their peak; zeros for a process that has ended."""
    try:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    except OSError:
        return 0, 0
    now, peak = (int(lines.get(name, "0 kB").split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, peak


if __name__ == "__main__":
    main()
