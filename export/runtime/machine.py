"""This machine: its instruction set and facts about it, and which files are meant for it."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

import numpy as np

from export.runtime import conditions

# What an int8 file can be built for; web: the wasm kernels of onnxruntime-web.
TARGETS = ("x86-vnni", "x86-avx2", "arm64", "web")


def runs_on(target: str | None, isa: str) -> bool:
    """Return whether a file built for `target` is meant for `isa`.

    Float files (`target` None) run anywhere; a file with reduced range is right with VNNI, too.
    """
    return target is None or target == isa or (target, isa) == ("x86-avx2", "x86-vnni")


def saturates(target: str | None, isa: str) -> bool:
    """Return whether kernels of `isa` saturate on a file built for `target`, and so change its answers.

    x86 without VNNI adds products in pairs, in 16 bits.
    """
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
    """Return x86-vnni, x86-avx2, x86, arm64, or the machine's own name. Without /proc an x86 is just `x86`."""
    return conditions.isa_of(platform.machine(), _field(_read("/proc/cpuinfo"), "flags") or "")


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def emulated() -> str | None:
    """Return "emulated on <processor>" if this process visibly runs under emulation, else None.

    QEMU's user mode leaves the host's /proc/cpuinfo and its own process name.
    """
    name, processor = _read("/proc/self/comm"), _read("/proc/cpuinfo")
    if name is None or processor is None:
        return None
    foreign = platform.machine().lower() in ("aarch64", "arm64", "armv7l") and "vendor_id" in processor
    if not foreign and not name.strip().startswith("qemu-"):
        return None
    lines = (line for line in processor.splitlines() if line.startswith("model name"))
    model = next((line.partition(":")[2].strip() for line in lines), "another processor")
    return f"emulated on {model}"


def host() -> dict[str, Any]:
    """Return what this machine is; stable between calls. Whatever cannot be read is None."""
    # onnxruntime takes half a second to load, and callers of `isa` do not need it.
    import onnxruntime

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
