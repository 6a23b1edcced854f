"""What the host shows, read from planted /proc and /sys; what it does not show is None."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from export.runtime import conditions

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]


def plant(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def test_unreadable_conditions_are_none(tmp_path: Path) -> None:
    assert conditions.busy_seconds(tmp_path) is None
    assert conditions.cpu_features(tmp_path) is None and conditions.governor(tmp_path) is None
    assert conditions.state(tmp_path) == {"temperature_c": None, "throttled": None, "clock_mhz": None}


def test_busy_seconds_count_allowed_cores_with_steal_and_without_idle(tmp_path: Path) -> None:
    tick = os.sysconf("SC_CLK_TCK")
    rows = [f"cpu{core} {tick} 0 {tick} 999999 777 {tick} 0 {2 * tick} 0 0" for core in CORES]
    root = plant(
        tmp_path,
        {"proc/stat": "\n".join(["cpu 1 2 3 4 5 6 7 8 9 10", *rows, "cpu99999 5000 0 0 0 0 0 0 0 0 0", "intr 5"])},
    )

    everybody, own = conditions.busy_seconds(root)

    assert everybody == pytest.approx(5 * len(CORES)) and 0 < own < 1e6


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs Linux")
def test_busy_seconds_increase_on_this_machine() -> None:
    first, second = conditions.busy_seconds(), conditions.busy_seconds()

    assert second[0] >= first[0] and second[1] >= first[1]


def test_a_round_of_a_few_ticks_has_no_load_of_its_own() -> None:
    tick = 1 / os.sysconf("SC_CLK_TCK")

    assert conditions.round_load((0.0, 0.0), (0.05, 0.0), 5 * tick) is None
    assert conditions.round_load((0.0, 0.0), (1.5, 0.5), 2.0) == 0.5


def test_conditions_are_read_from_proc_and_sys(tmp_path: Path) -> None:
    cpu, zone = "sys/devices/system/cpu/", "sys/class/thermal/"
    files = {f"{cpu}cpu{core}/cpufreq/scaling_governor": "schedutil" for core in CORES}
    files |= {f"{cpu}cpu{core}/cpufreq/scaling_cur_freq": "1500000" for core in CORES}
    files |= {
        "proc/cpuinfo": "processor : 0\nflags : fpu avx2 avx512_vnni",
        f"{cpu}cpu0/thermal_throttle/core_throttle_count": "3",
    }
    files |= {
        f"{cpu}cpu0/thermal_throttle/package_throttle_count": "4",
        f"{zone}thermal_zone0/temp": "41500",
        f"{zone}thermal_zone1/temp": "0",
    }
    root = plant(tmp_path, files)

    assert conditions.cpu_features(root) == ["avx2", "avx512_vnni"]
    assert conditions.governor(root) == "schedutil"
    assert conditions.state(root) == {"temperature_c": 41.5, "throttled": 7, "clock_mhz": 1500.0}


def test_arm_features_are_read_from_the_features_line(tmp_path: Path) -> None:
    assert conditions.cpu_features(plant(tmp_path, {"proc/cpuinfo": "Features\t: fp asimd asimddp"})) == [
        "asimd",
        "asimddp",
    ]
