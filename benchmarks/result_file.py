"""The result file of a benchmark: its path, the command, the machine, and how it is written.

Every script that measures writes one JSON file with `command` and `environment`, so that a reader can repeat it.
"""

from __future__ import annotations

import json
import re
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from export.runtime import host

RESULTS = Path(__file__).parent / "results"


def path(name: str, device: str, engine: str = "auto") -> Path:
    """Return results/<name>-<device>.json, with -<engine> unless that is auto, so that no device overwrites another's.

    Args:
        name: of the benchmark.
        device: cpu, cuda or cuda:N.
        engine: the `train.engine` that was measured.
    """
    parts = [name, device.split(":")[0], *([] if engine == "auto" else [engine])]
    return RESULTS / f"{'-'.join(parts)}.json"


def command(script: str) -> str:
    """Return the command line of this process, to be run from the repository's root."""
    return shlex.join(["python", f"benchmarks/{script}", *sys.argv[1:]])


def write(out: Path, content: dict[str, Any]) -> None:
    """Write a result as JSON, and its folder if it is not there."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=1) + "\n")


def ratio(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    """Return median and range of slow / fast, round by round."""
    ratios = [one / other for one, other in zip(slow, fast, strict=True)]
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "n": len(ratios)}


def environment(device: str) -> dict[str, Any]:
    """Return hardware and versions.

    CPU family and model tell processors apart whose names a virtual machine shortens to the same one.
    """
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    matches = (re.search(rf"^{name}\s*: (\d+)", text, re.MULTILINE) for name in ("cpu family", "model"))
    return {
        **host(),
        "cpu_family_and_model": [found.group(1) for found in matches if found],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu",
    }
