"""What this machine is, and which files are meant for it."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

import numpy as np

from export.runtime import conditions

# what an int8 file can be built for; web: onnxruntime-web's wasm kernels
TARGETS = ("x86-vnni", "x86-avx2", "arm64", "web")


def runs_on(target: str | None, isa: str) -> bool:
    """Whether a file built for `target` is meant for `isa`; float files run anywhere, a reduced range is right with VNNI too."""
    return target is None or target == isa or (target, isa) == ("x86-avx2", "x86-vnni")


def saturates(target: str | None, isa: str) -> bool:
    """Whether kernels of `isa` give other answers than a file built for `target` means: x86 without VNNI adds products in pairs, in 16 bits."""
    return isa in ("x86", "x86-avx2") and target not in (None, "x86-avx2")


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _field(text: str | None, name: str) -> str | None:
    match = re.search(rf"^{name}\s*:\s*(.+)$", text or "", re.MULTILINE)
    return match.group(1).strip() if match else None


def isa() -> str:
    """x86-vnni | x86-avx2 | x86 | arm64 | the machine's own name. Without /proc an x86 is `x86`: nothing is guessed."""
    return conditions.isa_of(platform.machine(), _field(_read("/proc/cpuinfo"), "flags") or "")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def host() -> dict[str, Any]:
    """What this machine is; stable between calls. What cannot be read is None."""
    import onnxruntime  # half a second to load: not for those who ask for the instruction set alone

    cpuinfo = _read("/proc/cpuinfo")
    memory = re.match(r"(\d+) kB", _field(_read("/proc/meminfo"), "MemTotal") or "")
    flags = _field(cpuinfo, "flags")
    governor = _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return {
        "cpu": _field(cpuinfo, "model name") or _field(cpuinfo, "Model") or platform.processor() or None,
        "architecture": platform.machine(),
        "isa": isa(),
        "cores": cores(),
        "memory_bytes": int(memory.group(1)) * 1024 if memory else None,
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": onnxruntime.__version__,
        "environment": {
            "virtual": None if flags is None else "hypervisor" in flags.split(),
            "governor": governor.strip() if governor else None,
        },
    }
