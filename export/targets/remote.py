"""Verification on any remote device: probe it, copy what changed, install what is missing, run the verifier.

Every step can be interrupted and repeated: files are compared by checksum before and after copying.
"""

from __future__ import annotations

import json
import re
import shlex
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from export.runtime.conditions import isa_of
from export.targets import Address, DeviceFailed, Unreachable, VerifySettings, scripts, wheels
from export.targets.unpack import checksums, unpacked

QUICK_SECONDS, COPY_SECONDS, INSTALL_SECONDS = 60.0, 1800.0, 900.0
# Bytes that stay free on the device.
FREE_MARGIN = 5_000_000
# numpy and onnxruntime, unpacked, with their wheels.
PACKAGES_BYTES = 400_000_000
PYTHONS = ("python3", "python3.13", "python3.12", "python3.11", "python3.10", "python3.9", "python3.8", "python")
# A login shell may print something before this mark.
_MARK = "@@compress@@"
Log = Callable[[str], None]


@dataclass(frozen=True)
class Done:
    """A command on the device that has ended: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


class Link(Protocol):
    """A connection to a device. Both methods raise Unreachable if it cannot be reached."""

    def call(self, argv: list[str], limit_seconds: float) -> Done:
        """Run a program on the device and return what it gave."""

    def push(self, files: list[Path], folder: str, limit_seconds: float) -> str | None:
        """Copy files into a folder of the device; return None, or the message if it failed."""


@dataclass(frozen=True)
class Probe:
    """What a device is.

    Attributes:
        folder: the working folder, absolute.
        machine: the architecture as `uname -m` prints it.
        python: the interpreter.
        version: of Python, such as (3, 11).
        glibc: its version, such as (2, 36); None without glibc.
        bits: of the interpreter.
        free: free bytes in the folder.
        isa: the instruction set that decides about int8.
    """

    folder: str
    machine: str
    python: str
    version: tuple[int, int]
    glibc: tuple[int, int] | None
    bits: int
    free: int
    isa: str


def run(
    link: Link, address: Address, bundle: Path, settings: VerifySettings, limit_seconds: float, log: Log
) -> dict[str, Any]:
    """Return the device's answer for a bundle.

    Args:
        link: the connection.
        address: the target.
        bundle: the zip.
        settings: how the verifier runs.
        limit_seconds: how long the verifier may take.
        log: receives a line about each step.

    Raises:
        Unreachable: the device or its interpreter is not there.
        DeviceFailed: the device could not do the work.
    """
    with tempfile.TemporaryDirectory() as temporary:
        local = unpacked(bundle, Path(temporary))
        sums = {**checksums(local), "checksums.sha256": scripts.sha256(local / "checksums.sha256")}
        device = probe(link, address)
        version = f"{device.version[0]}.{device.version[1]}"
        log(f"{address.name}: {device.machine}, Python {version}, {device.free / 1e9:.1f} GB free")
        if address.python is None and (device.machine not in wheels.MACHINES or device.bits != 64):
            raise Unreachable(
                f"{address.name} is {device.machine} ({device.bits} bits); onnxruntime has wheels for x86_64 and "
                f"aarch64 only; build it there and name its interpreter: --target '{address.name}?python=/path'"
            )
        folder = f"bundle-{re.sub(r'[^A-Za-z0-9_.-]', '-', settings.name)}"
        copied = _sync(link, address, device, local, sums, folder)
        log(f"{address.name}: {copied} of {len(sums)} files copied, the others were there")
        if address.python:
            python = _given(link, address)
        else:
            python = _installed(link, address, device, local / "requirements.txt", log)
    arguments = [python, "-E", "-B", "-m", "export.verify", "--json", "../answer.json", *settings.arguments(), "."]
    log(f"{address.name}: verifying{f', {settings.sustained} s without a pause' if settings.sustained else ''}")
    order = {
        "argv": arguments,
        "cwd": f"{device.folder}/{folder}",
        "answer": f"{device.folder}/answer.json",
        "limit": limit_seconds,
    }
    result = _python(link, address, device.python, scripts.VERIFY, order, limit_seconds + QUICK_SECONDS)
    if result["answer"] is not None:
        return dict(result["answer"])
    if result["code"] is None:
        raise DeviceFailed(f"{address.name}: the verifier did not answer within {limit_seconds:.0f} seconds")
    kind, message = Unreachable if result["code"] == 3 else DeviceFailed, result["said"]
    raise kind(f"{address.name}: the verifier ended with {result['code']}: {_disk_full(message) or message}")


def probe(link: Link, address: Address) -> Probe:
    """Return the architecture, interpreter and disk of a device. Raises Unreachable, DeviceFailed."""
    candidates = [address.python] if address.python else list(PYTHONS)
    folder = address.folder or ".compress-verify"
    done = link.call(["sh", "-c", scripts.PROBE, "sh", folder, scripts.PYTHON, *candidates], QUICK_SECONDS)
    lines = done.out.partition(_MARK)[2].strip().splitlines()
    if done.code != 0 or len(lines) < 2:
        message = _last(done.err or done.out)
        raise DeviceFailed(f"{address.name}: {_disk_full(message) or message or 'it has no POSIX shell'}")
    if len(lines) < 3:
        what = f"no working Python 3.8 or newer at {address.python}" if address.python else "no Python 3.8 or newer"
        raise Unreachable(
            f"{address.name} has {what}; install one there (Debian: apt-get install python3-venv), "
            "or add ?python=/path to the target"
        )
    about = json.loads(lines[2])
    glibc = re.match(r"(\d+)\.(\d+)", about["glibc"])
    return Probe(
        folder=lines[0],
        machine=lines[1],
        python=about["executable"],
        version=(about["version"][0], about["version"][1]),
        glibc=(int(glibc.group(1)), int(glibc.group(2))) if glibc else None,
        bits=about["bits"],
        free=about["free"],
        isa=isa_of(lines[1], about["flags"]),
    )


def _sync(link: Link, address: Address, device: Probe, local: Path, sums: dict[str, str], name: str) -> int:
    """Make the device's folder `name` equal to the local one; return how many files were copied."""
    order = {"folder": f"{device.folder}/{name}", "sums": sums}
    state = _python(link, address, device.python, scripts.COMPARE, order, COPY_SECONDS)
    missing, free = state["missing"], state["free"]
    needed = sum((local / one).stat().st_size for one in missing)
    if needed + FREE_MARGIN > free:
        raise DeviceFailed(
            f"{address.name}: the disk is full: {free / 1e6:.0f} MB free in {device.folder}, "
            f"{(needed + FREE_MARGIN) / 1e6:.0f} MB needed"
        )
    for parent in sorted({Path(one).parent.as_posix() for one in missing}):
        files = [local / one for one in missing if Path(one).parent.as_posix() == parent]
        failure = link.push(files, f"{device.folder}/{name}" + ("" if parent == "." else f"/{parent}"), COPY_SECONDS)
        if failure is not None:
            free_order = {**order, "sums": None}
            left = _python(link, address, device.python, scripts.COMPARE, free_order, QUICK_SECONDS)["free"]
            what = "the disk is full" if left < sum(file.stat().st_size for file in files) else "copying failed"
            raise DeviceFailed(f"{address.name}: {what}: {failure}; run the same command again to go on")
    if not missing:
        return 0
    changed = _python(link, address, device.python, scripts.COMPARE, order, COPY_SECONDS)["missing"]
    if changed:
        raise DeviceFailed(
            f"{address.name}: {changed[0]} arrived changed; its disk may be full or broken; "
            "run the same command again to go on"
        )
    return len(missing)


def _given(link: Link, address: Address) -> str:
    """Return the user's own interpreter if it has both packages. Raises Unreachable."""
    assert address.python is not None
    done = link.call([address.python, "-E", "-B", "-c", scripts.PACKAGES], QUICK_SECONDS)
    if done.code != 0:
        what = f"{address.python} does not have numpy and onnxruntime ({_last(done.err)})"
        raise Unreachable(f"{address.name}: {what}; install them there, or leave ?python= out")
    return address.python


def _installed(link: Link, address: Address, device: Probe, requirements: Path, log: Log) -> str:
    """Return the interpreter of a virtual environment with both packages, made if it is not there yet."""
    venv = f"{device.folder}/venv-{device.version[0]}.{device.version[1]}"
    python = f"{venv}/bin/python"
    wanted = [line for line in requirements.read_text(encoding="utf-8").splitlines() if line]
    if link.call([python, "-E", "-B", "-c", scripts.PACKAGES], QUICK_SECONDS).code == 0:
        return python
    if device.free < PACKAGES_BYTES:
        raise DeviceFailed(
            f"{address.name}: the disk is full: {device.free / 1e6:.0f} MB free in {device.folder}, "
            f"numpy and onnxruntime need {PACKAGES_BYTES / 1e6:.0f} MB"
        )
    log(f"{address.name}: making a virtual environment")
    has_pip = _make_venv(link, address, device, venv)
    fetched = False
    if has_pip and address.wheels == "auto" and link.call([python, "-c", scripts.NETWORK], QUICK_SECONDS).code == 0:
        log(f"{address.name}: installing numpy and onnxruntime from its own network")
        pip = [python, "-m", "pip", "install", "-q", "--retries", "1", "--timeout", "15", "--only-binary=:all:"]
        fetched = link.call([*pip, *wanted], INSTALL_SECONDS).code == 0
    if not fetched:
        log(f"{address.name}: fetching wheels here and pushing them")
        _push_wheels(link, address, device, python, wanted)
    done = link.call([python, "-E", "-B", "-c", scripts.PACKAGES], QUICK_SECONDS)
    if done.code != 0:
        raise DeviceFailed(
            f"{address.name}: numpy and onnxruntime were installed and cannot be imported: {_last(done.err)}"
        )
    return python


def _make_venv(link: Link, address: Address, device: Probe, venv: str) -> bool:
    """Make a virtual environment; return whether it has pip. Raises Unreachable."""
    if link.call([device.python, "-m", "venv", "--clear", venv], INSTALL_SECONDS).code == 0:
        return True
    bare = link.call([device.python, "-m", "venv", "--clear", "--without-pip", venv], INSTALL_SECONDS)
    if bare.code != 0:
        raise Unreachable(
            f"{address.name}: {device.python} cannot make a virtual environment ({_last(bare.err or bare.out)}); "
            "install python3-venv there, or name an interpreter that has numpy and onnxruntime: "
            f"--target '{address.name}?python=/path'"
        )
    return False


def _push_wheels(link: Link, address: Address, device: Probe, python: str, wanted: list[str]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        wheels.download(folder, wanted, device.machine, device.version, device.glibc)
        sums = {file.name: scripts.sha256(file) for file in sorted(folder.iterdir())}
        _sync(link, address, device, folder, sums, "wheels")
    _python(link, address, python, scripts.INSTALL, {"folder": f"{device.folder}/wheels"}, INSTALL_SECONDS)


def _python(
    link: Link, address: Address, python: str, script: str, order: dict[str, Any], limit_seconds: float
) -> dict[str, Any]:
    """Run one of `scripts` on the device; order and result are JSON."""
    done = link.call([python, "-E", "-B", "-c", script, json.dumps(order)], limit_seconds)
    if done.code != 0:
        message = _last(done.err or done.out)
        raise DeviceFailed(f"{address.name}: {_disk_full(message) or message}; run the same command again to go on")
    result: dict[str, Any] = json.loads(done.out.partition(_MARK)[2])
    return result


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


def _disk_full(message: str) -> str | None:
    """Return a sentence if any program's message means a full disk, else None."""
    full = re.search(r"no space left|disk quota|disk full", message, re.IGNORECASE)
    return f"the disk is full ({message})" if full else None


def quoted(argv: list[str]) -> str:
    """Return one line that a shell splits into exactly these arguments."""
    return shlex.join(argv)
