"""Wheels of numpy and onnxruntime for a device without a network, fetched here by pip."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from export.targets import Unreachable

MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
# The minor version of the oldest glibc that wheels are built for: 2.17, manylinux2014.
OLDEST_GLIBC_MINOR = 17


def platforms(machine: str, glibc: tuple[int, int] | None) -> list[str]:
    """Return pip's platform tags that a Linux with this glibc runs, newest first. Raises Unreachable without glibc."""
    if glibc is None or glibc < (2, OLDEST_GLIBC_MINOR):
        raise Unreachable(
            "the device has no glibc 2.17 or newer (musl, Android?), and onnxruntime has no wheels without it; "
            "name an interpreter with ?python=/path"
        )
    return [f"manylinux_2_{minor}_{MACHINES[machine]}" for minor in range(glibc[1], OLDEST_GLIBC_MINOR - 1, -1)]


def command(
    folder: Path, wanted: list[str], machine: str, version: tuple[int, int], glibc: tuple[int, int] | None
) -> list[str]:
    """Return pip's command line. Dependencies are left out: the two packages import without them.

    Args:
        folder: where the wheels go.
        wanted: requirements, one a package.
        machine: the device's architecture, as `uname -m` prints it.
        version: of its Python.
        glibc: its version; None without glibc.
    """
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
    """Fill `folder` with wheels; the arguments are those of `command`. Raises Unreachable."""
    done = subprocess.run(command(folder, wanted, machine, version, glibc), capture_output=True, text=True)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        message = ([line for line in lines if line.startswith("ERROR")] or lines or ["no message"])[-1]
        raise Unreachable(
            f"wheels of {', '.join(wanted)} for Python {version[0]}.{version[1]} on {machine} "
            f"could not be fetched here: {message}"
        )
