"""Where a benchmark of training writes its result, and on what it was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from export.runtime import host


def path(name: str, device: str, engine: str = "auto") -> Path:
    """results/<name>-<device>.json, of another engine than the usual one results/<name>-<device>-<engine>.json: no device overwrites another's."""
    parts = [name, device.split(":")[0], *([] if engine == "auto" else [engine])]
    return Path(__file__).parent / "results" / f"{'-'.join(parts)}.json"


def environment(device: str) -> dict[str, Any]:
    """Hardware and versions."""
    card = torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"
    return {**host(), "torch": torch.__version__, "cuda": torch.version.cuda, "threads": torch.get_num_threads(), "device": card}
