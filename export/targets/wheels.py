"""Packages for a device without a network: its wheels of numpy and onnxruntime, fetched here by pip."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from export.targets import Unreachable

MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
OLDEST_GLIBC = 17  # 2.17, manylinux2014


def platforms(machine: str, glibc: tuple[int, int] | None) -> list[str]:
    """pip's names of all wheels that a Linux with this glibc runs, newest first. Raises Unreachable without glibc."""
    if glibc is None or glibc < (2, OLDEST_GLIBC):
        raise Unreachable(
            "the device has no glibc 2.17 or newer (musl, Android?), for which onnxruntime has no wheels; name an interpreter with ?python=/path"
        )
    return [f"manylinux_2_{minor}_{MACHINES[machine]}" for minor in range(glibc[1], OLDEST_GLIBC - 1, -1)]


def command(
    folder: Path, wanted: list[str], machine: str, version: tuple[int, int], glibc: tuple[int, int] | None
) -> list[str]:
    """pip's arguments. No dependencies: the two packages import without any other."""
    tag = f"{version[0]}.{version[1]}"
    places = [part for name in platforms(machine, glibc) for part in ("--platform", name)]
    return [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary=:all:",
        "--implementation",
        "cp",
        "--python-version",
        tag,
        *places,
        "-d",
        str(folder),
        *wanted,
    ]


def download(
    folder: Path, wanted: list[str], machine: str, version: tuple[int, int], glibc: tuple[int, int] | None
) -> None:
    """Fill `folder` with wheels. Raises Unreachable."""
    done = subprocess.run(command(folder, wanted, machine, version, glibc), capture_output=True, text=True)
    if done.returncode != 0:
        said = (
            [line for line in done.stderr.strip().splitlines() if line.startswith("ERROR")]
            or done.stderr.strip().splitlines()
            or ["no message"]
        )
        raise Unreachable(
            f"wheels of {', '.join(wanted)} for Python {version[0]}.{version[1]} on {machine} could not be fetched here: {said[-1]}"
        )
