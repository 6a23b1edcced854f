"""Start-up time: what a user waits for before anything is computed.

    python benchmarks/startup.py recipes/mobilenet.yaml

Runs on the CPU. Times `compress --help`, a recipe error, `import torch` alone, `compress check` and a fully cached
`compress run`, each in a process of its own, in turns after an untimed round, and prints each relative to `import
torch` of the same round. Python may keep its bytecode, as it does unless PYTHONDONTWRITEBYTECODE is set: without it,
every start compiles some thousand files, which takes most of the time. The cached run needs an earlier `compress run`
of the recipe in --artifacts; without it, that line is left out with a note. If the timed run does not reuse every
stage, the script ends with an error and writes nothing.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import result_file

from export.runtime import host


@click.command()
@click.argument("path", type=click.Path(path_type=Path, exists=True))
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(1))
@click.option("--artifacts", default=Path("artifacts"), show_default=True, type=click.Path(path_type=Path))
@click.option("--out", default=result_file.RESULTS / "startup.json", type=click.Path(path_type=Path))
def main(path: Path, repeats: int, artifacts: Path, out: Path) -> None:
    """Measure, print and write."""
    commands = {
        "help": ["--help"],
        "recipe error": ["check", str(path), "--set", "train.epoch=1"],
        "import torch": ["-c", "import torch"],
        "check": ["check", str(path)],
        "cached run": ["run", str(path), "--artifacts", str(artifacts), "-q", "--json"],
    }
    expected = {"recipe error": (2,), "cached run": (0, 5, 6)}
    if not any((artifacts / "cache" / "validate").glob("*/stage.json")):
        print(f"cached run: left out, {artifacts} holds no finished run; make one with: compress run {path}")
        del commands["cached run"]
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for number in range(repeats + 1):
        for name, arguments in commands.items():
            command = [sys.executable, *(arguments if arguments[0] == "-c" else ("-m", "compress", *arguments))]
            begin = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
            if number:
                seconds[name].append(time.perf_counter() - begin)
            if done.returncode not in expected.get(name, (0,)):
                raise SystemExit(f"{name} ended with {done.returncode}: {done.stderr.strip()}")
            if number and name == "cached run":
                _all_reused(json.loads(done.stdout))
    for name, values in seconds.items():
        ends = f"[{min(values):.2f}, {max(values):.2f}]"
        relative = _ratio(values, seconds["import torch"])
        print(f"{name:<14}{statistics.median(values):7.2f} s  {ends}  n = {repeats}{relative}")
    rows = {name: {"median_seconds": statistics.median(values), "each": values} for name, values in seconds.items()}
    written_as = f"python benchmarks/startup.py {path} --repeats {repeats}"
    environment = {**host(), "torch": importlib.metadata.version("torch")}
    result_file.write(out, {"command": written_as, "rows": rows, "environment": environment})
    print(f"written: {out}")


def _all_reused(report: dict[str, Any]) -> None:
    """Raise SystemExit if a stage of the run was not reused."""
    if anew := [stage for stage in report["seconds"] if stage not in report["reused"]]:
        verb = "was" if len(anew) == 1 else "were"
        raise SystemExit(f"cached run: {', '.join(anew)} ran and {verb} not reused; what was timed is not a cached run")


def _ratio(values: list[float], others: list[float]) -> str:
    """Return the ratio to `import torch`, round by round: median and range."""
    found = result_file.ratio(values, others)
    return f"  {found['median']:.2f}x [{found['low']:.2f}, {found['high']:.2f}] of import torch"


if __name__ == "__main__":
    main()
