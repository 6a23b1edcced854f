"""Measurement conditions: load of other processes, clock governor, temperature, throttling.

Standard library only; runs on Python 3.8, because it travels in the bundle. Whatever a host does not show is None.
`root` is the folder that holds /proc and /sys; tests replace it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

ROOT = Path("/")
# Above this share of one core used by other processes, a measurement is contaminated.
BUSY_CORES = 0.05
# /proc/stat counts whole ticks.
SLACK_TICKS = 2
# A round shorter than this many ticks has no load of its own: one tick would be a tenth of a core.
ROUND_TICKS = 10
# Instruction sets that decide which kernels run.
FEATURES = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "asimd",
    "asimddp",
    "i8mm",
    "sve",
    "bf16",
)

# CPU seconds: of all processes, of this process.
Busy = Tuple[float, float]


def _read(path: Path) -> Optional[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _allowed() -> List[int]:
    """Return the numbers of the cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def too_many_threads(threads: int) -> Optional[str]:
    """Return a sentence if there are more threads than cores for this process, else None."""
    count = len(_allowed())
    if threads <= count:
        return None
    cores = f"{count} core{'' if count == 1 else 's'}"
    return f"{threads} threads on {cores} interrupt each other; lower validate.threads"


def isa_of(machine: str, flags: str) -> str:
    """Return the instruction set that decides about int8: x86-vnni, x86-avx2, x86, arm64, or the machine's own name.

    `machine` is what `uname -m` prints; `flags` are those of /proc/cpuinfo, empty where there is none.
    """
    machine, found = machine.lower(), set(flags.split())
    if machine in ("aarch64", "arm64"):
        return "arm64"
    if machine not in ("x86_64", "amd64", "i386", "i686"):
        return machine
    if found & {"avx512_vnni", "avx_vnni"}:
        return "x86-vnni"
    return "x86-avx2" if "avx2" in found else "x86"


def busy_seconds(root: Path = ROOT) -> Optional[Busy]:
    """Return the CPU seconds used on this process's cores: by all processes (steal included), and by this one.

    None without /proc/stat.
    """
    text = _read(root / "proc/stat")
    try:
        tick = os.sysconf("SC_CLK_TCK")
        allowed = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        rows = [fields for fields in map(str.split, (text or "").splitlines()) if fields and fields[0] in allowed]
        # user, nice, system, irq, softirq, steal; idle and iowait stand between
        total = sum(int(fields[place]) for fields in rows for place in (1, 2, 3, 6, 7, 8))
    except (AttributeError, ValueError, IndexError):
        return None
    own = os.times()
    return (total / tick, own.user + own.system) if rows else None


def load_of_others(
    before: Optional[Busy], after: Optional[Busy], wall: float
) -> Tuple[Optional[float], Optional[bool]]:
    """Return how many cores others used on average in `wall` seconds, and whether that disturbs a measurement."""
    if before is None or after is None or wall <= 0:
        return None, None
    used = max(0.0, (after[0] - before[0]) - (after[1] - before[1]))
    return used / wall, used > BUSY_CORES * wall + SLACK_TICKS / os.sysconf("SC_CLK_TCK")


def round_load(before: Optional[Busy], after: Optional[Busy], wall: float) -> Optional[float]:
    """Return the cores that other processes used in one round; None if it is too short for the kernel's clock ticks."""
    if wall < ROUND_TICKS / os.sysconf("SC_CLK_TCK"):
        return None
    return load_of_others(before, after, wall)[0]


def cpu_features(root: Path = ROOT) -> Optional[List[str]]:
    """Return which of FEATURES the processor has; None if /proc/cpuinfo does not list them."""
    match = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _read(root / "proc/cpuinfo") or "", re.MULTILINE)
    return [name for name in FEATURES if name in match.group(1).split()] if match else None


def governor(root: Path = ROOT) -> Optional[str]:
    """Return the clock governor of this process's cores, such as performance; several are joined by a comma."""
    found = {_read(root / f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor") for core in _allowed()}
    return ", ".join(sorted(name for name in found if name)) or None


def temperature_c(root: Path = ROOT) -> Optional[float]:
    """Return the temperature of the hottest thermal zone in degrees Celsius."""
    values = []
    for path in root.glob("sys/class/thermal/thermal_zone*/temp"):
        text = _read(path)
        if text and re.fullmatch(r"-?\d+", text) and int(text) > 0:  # unused zones read 0 or less
            values.append(int(text) / 1000)
    return max(values) if values else None


def throttled(root: Path = ROOT) -> Optional[int]:
    """Return how often the processor has throttled since boot, summed over all counters; compare two readings."""
    counts = [_read(path) for path in root.glob("sys/devices/system/cpu/cpu*/thermal_throttle/*_throttle_count")]
    numbers = [int(text) for text in counts if text and text.isdigit()]
    return sum(numbers) if numbers else None


def clock_mhz(root: Path = ROOT) -> Optional[float]:
    """Return the current mean clock of this process's cores in MHz."""
    texts = [_read(root / f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq") for core in _allowed()]
    numbers = [int(text) / 1000 for text in texts if text and text.isdigit()]
    return sum(numbers) / len(numbers) if numbers else None


def state(root: Path = ROOT) -> Dict[str, Any]:
    """Return what can change while a model runs: temperature, throttle count, clock."""
    return {"temperature_c": temperature_c(root), "throttled": throttled(root), "clock_mhz": clock_mhz(root)}
