"""Where a benchmark of training writes its result, and on what it was measured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from export.runtime import host


def path(name: str, device: str, engine: str = "auto") -> Path:
    """results/<name>-<device>.json, of another engine than the usual one results/<name>-<device>-<engine>.json: no device overwrites another's."""
    parts = [name, device.split(":")[0], *([] if engine == "auto" else [engine])]
    return Path(__file__).parent / "results" / f"{'-'.join(parts)}.json"


def environment(device: str) -> dict[str, Any]:
    """Hardware and versions. The family and model tell processors apart whose names a virtual machine shortens to one."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    numbers = [
        found.group(1)
        for name in ("cpu family", "model")
        if (found := re.search(rf"^{name}\s*: (\d+)", text, re.MULTILINE))
    ]
    card = torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"
    return {
        **host(),
        "cpu_family_and_model": numbers,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "device": card,
    }
