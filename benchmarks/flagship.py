"""The README's two commands from nothing: a clone, its installation, and a recipe's run; how long they take.

    python benchmarks/flagship.py
    python benchmarks/flagship.py recipes/shufflenet.yaml

Runs on the CPU. Clones this repository, as it was committed, into a temporary folder. The installation takes packages
from the package cache if they are there, and the run finds compiled kernels of an earlier training. The run's own lines
are shown as they come, and its last ones are kept.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from pathlib import Path

import click
import result_file

from compress.core.latest_run import latest_run

ROOT = Path(__file__).parents[1]
KEPT = (
    "status",
    "teacher",
    "student",
    "models",
    "comparisons",
    "distillation",
    "int8_against_float",
    "requirements",
    "seconds",
)
# From the table of files on.
LINES = 14


@click.command()
@click.argument("recipe", default="recipes/mobilenet.yaml")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="default: benchmarks/results/flagship.json, of another recipe flagship-<name>.json",
)
def main(recipe: str, out: Path | None) -> None:
    """Clone, install, run, print and write. A verdict that is not `passed` is a result like any other."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=clone, check=True, capture_output=True, text=True
        ).stdout.strip()
        begin = time.monotonic()
        subprocess.run(["make", "setup"], cwd=clone, check=True)
        installed = time.monotonic()
        said = _run(clone, recipe)
        ended = time.monotonic()
        (runs,) = (clone / "artifacts" / "runs").iterdir()
        latest = latest_run(runs)
        assert latest is not None, "the run has left no report"
        report, name = json.loads((latest / "report.json").read_text()), runs.name
    content = {
        "command": f"python benchmarks/flagship.py {recipe}",
        "commit": commit,
        "setup_seconds": round(installed - begin, 1),
        "run_seconds": round(ended - installed),
        **{key: report[key] for key in KEPT},
        "said": said[-LINES:],
        "environment": result_file.environment("cpu"),
    }
    written = out or result_file.RESULTS / ("flagship.json" if name == "mobilenet" else f"flagship-{name}.json")
    result_file.write(written, content)
    print(f"{content['setup_seconds']} s to install, {content['run_seconds']} s to run; written: {written}")


def _run(clone: Path, recipe: str) -> list[str]:
    """Make the run and return the lines that it prints. Raises SystemExit if it makes no report."""
    command = [str(clone / ".venv" / "bin" / "compress"), "run", recipe, "--device", "cpu"]
    with subprocess.Popen(command, cwd=clone, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip().replace(f"{clone}/", ""))
    if process.returncode not in (0, 5, 6):
        raise SystemExit(f"compress run ended with {process.returncode}")
    return lines


if __name__ == "__main__":
    main()
