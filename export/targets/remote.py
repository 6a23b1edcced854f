"""What is the same for every distant device: look at it, copy what changed, install what is missing, run the verifier, take its answer.

Every step can be broken off and done again: files are compared by checksum before and after copying.
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

QUICK, COPY, INSTALL = 60.0, 1800.0, 900.0  # seconds
MARGIN = 5_000_000  # bytes that are left free
PACKAGES_BYTES = 400_000_000  # numpy and onnxruntime, unpacked, with their wheels
PYTHONS = ("python3", "python3.13", "python3.12", "python3.11", "python3.10", "python3.9", "python3.8", "python")
_MARK = "@@compress@@"  # what a login shell prints before it is not ours
Log = Callable[[str], None]


@dataclass(frozen=True)
class Done:
    """A command on the device that has ended."""

    code: int
    out: str
    err: str


class Link(Protocol):
    """How a device is reached. Both raise Unreachable where it is not."""

    def call(self, argv: list[str], limit_seconds: float) -> Done:
        """Run a program on the device."""

    def push(self, files: list[Path], folder: str, limit_seconds: float) -> str | None:
        """Copy files into a folder of the device; None, or what was said when it failed."""


@dataclass(frozen=True)
class Seen:
    """What the first look found. `folder` is absolute; `python`: interpreter, version (3, 11), glibc (2, 36) or None, free bytes; `isa`: of int8."""

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
    """The device's answer for a bundle (zip). Raises Unreachable, DeviceFailed."""
    with tempfile.TemporaryDirectory() as temporary:
        local = unpacked(bundle, Path(temporary))
        sums = {**checksums(local), "checksums.sha256": scripts.sha256(local / "checksums.sha256")}
        seen = look(link, address)
        log(
            f"{address.name}: {seen.machine}, Python {seen.version[0]}.{seen.version[1]}, {seen.free / 1e9:.1f} GB free"
        )
        if address.python is None and (seen.machine not in wheels.MACHINES or seen.bits != 64):
            raise Unreachable(
                f"{address.name} is {seen.machine} ({seen.bits} bits), for which onnxruntime has no wheels (x86_64 and aarch64 have); "
                f"build it there and name its interpreter: --target '{address.name}?python=/path'"
            )
        folder = f"bundle-{re.sub(r'[^A-Za-z0-9_.-]', '-', settings.name)}"
        copied = _sync(link, address, seen, local, sums, folder)
        log(f"{address.name}: {copied} of {len(sums)} files copied, the others were there")
        python = (
            _given(link, address)
            if address.python
            else _installed(link, address, seen, local / "requirements.txt", log)
        )
    arguments = [python, "-E", "-B", "-m", "export.verify", "--json", "../answer.json", *settings.arguments(), "."]
    log(
        f"{address.name}: verifying" + (f", {settings.sustained} s of it without a pause" if settings.sustained else "")
    )
    order = {
        "argv": arguments,
        "cwd": f"{seen.folder}/{folder}",
        "answer": f"{seen.folder}/answer.json",
        "limit": limit_seconds,
    }
    said = _python(link, address, seen.python, scripts.VERIFY, order, limit_seconds + QUICK)
    if said["answer"] is not None:
        return dict(said["answer"])
    if said["code"] is None:
        raise DeviceFailed(f"{address.name}: the verifier did not answer within {limit_seconds:.0f} seconds")
    kind = Unreachable if said["code"] == 3 else DeviceFailed
    raise kind(f"{address.name}: the verifier ended with {said['code']}: {_full(said['said']) or said['said']}")


def look(link: Link, address: Address) -> Seen:
    """Architecture, interpreter and disk of the device. Raises Unreachable, DeviceFailed."""
    candidates = [address.python] if address.python else list(PYTHONS)
    done = link.call(
        ["sh", "-c", scripts.LOOK, "sh", address.folder or ".compress-verify", scripts.PYTHON, *candidates], QUICK
    )
    lines = done.out.partition(_MARK)[2].strip().splitlines()
    if done.code != 0 or len(lines) < 2:
        said = _last(done.err or done.out)
        raise DeviceFailed(f"{address.name}: {_full(said) or said or 'it has no POSIX shell'}")
    if len(lines) < 3:
        what = f"no working Python 3.8 or newer at {address.python}" if address.python else "no Python 3.8 or newer"
        raise Unreachable(
            f"{address.name} has {what}; install one there (Debian: apt-get install python3-venv), or add ?python=/path to the target"
        )
    about = json.loads(lines[2])
    glibc = (
        tuple(int(part) for part in about["glibc"].split(".")[:2]) if re.match(r"\d+\.\d+", about["glibc"]) else None
    )
    version = (about["version"][0], about["version"][1])
    return Seen(
        lines[0],
        lines[1],
        about["executable"],
        version,
        glibc,  # type: ignore[arg-type]
        about["bits"],
        about["free"],
        isa_of(lines[1], about["flags"]),
    )


def _sync(link: Link, address: Address, seen: Seen, local: Path, sums: dict[str, str], name: str) -> int:
    """Make the device's folder `name` equal to the local one; how many files were copied."""
    order = {"folder": f"{seen.folder}/{name}", "sums": sums}
    state = _python(link, address, seen.python, scripts.COMPARE, order, COPY)
    missing, free = state["missing"], state["free"]
    needed = sum((local / one).stat().st_size for one in missing)
    if needed + MARGIN > free:
        raise DeviceFailed(
            f"{address.name}: the disk is full: {free / 1e6:.0f} MB free in {seen.folder}, {(needed + MARGIN) / 1e6:.0f} MB needed"
        )
    for parent in sorted({Path(one).parent.as_posix() for one in missing}):
        files = [local / one for one in missing if Path(one).parent.as_posix() == parent]
        failure = link.push(files, f"{seen.folder}/{name}" + ("" if parent == "." else f"/{parent}"), COPY)
        if failure is not None:
            left = _python(link, address, seen.python, scripts.COMPARE, {**order, "sums": None}, QUICK)["free"]
            full = left < sum(file.stat().st_size for file in files)
            raise DeviceFailed(
                f"{address.name}: {'the disk is full' if full else 'copying failed'}: {failure}; run the same command again to go on"
            )
    left = _python(link, address, seen.python, scripts.COMPARE, order, COPY)["missing"] if missing else []
    if left:
        raise DeviceFailed(
            f"{address.name}: {left[0]} arrived changed; its disk may be full or broken; run the same command again to go on"
        )
    return len(missing)


def _given(link: Link, address: Address) -> str:
    """The user's own interpreter, checked."""
    assert address.python is not None
    done = link.call([address.python, "-E", "-B", "-c", scripts.PACKAGES], QUICK)
    if done.code != 0:
        what = f"{address.python} does not have numpy and onnxruntime ({_last(done.err)})"
        raise Unreachable(f"{address.name}: {what}; install them there, or leave ?python= out")
    return address.python


def _installed(link: Link, address: Address, seen: Seen, requirements: Path, log: Log) -> str:
    """The interpreter of a virtual environment with both packages, made where it is not there yet."""
    venv = f"{seen.folder}/venv-{seen.version[0]}.{seen.version[1]}"
    python = f"{venv}/bin/python"
    wanted = [line for line in requirements.read_text(encoding="utf-8").splitlines() if line]
    if link.call([python, "-E", "-B", "-c", scripts.PACKAGES], QUICK).code == 0:
        return python
    if seen.free < PACKAGES_BYTES:
        raise DeviceFailed(
            f"{address.name}: the disk is full: {seen.free / 1e6:.0f} MB free in {seen.folder}, numpy and onnxruntime need {PACKAGES_BYTES / 1e6:.0f} MB"
        )
    log(f"{address.name}: making a virtual environment")
    whole = link.call([seen.python, "-m", "venv", "--clear", venv], INSTALL).code == 0
    if not whole:
        bare = link.call([seen.python, "-m", "venv", "--clear", "--without-pip", venv], INSTALL)
        if bare.code != 0:
            raise Unreachable(
                f"{address.name}: {seen.python} cannot make a virtual environment ({_last(bare.err or bare.out)}); install python3-venv there, or name an "
                f"interpreter that has numpy and onnxruntime: --target '{address.name}?python=/path'"
            )
    fetched = False
    if whole and address.wheels == "auto" and link.call([python, "-c", scripts.NETWORK], QUICK).code == 0:
        log(f"{address.name}: installing numpy and onnxruntime from its own network")
        fetched = (
            link.call(
                [
                    python,
                    "-m",
                    "pip",
                    "install",
                    "-q",
                    "--retries",
                    "1",
                    "--timeout",
                    "15",
                    "--only-binary=:all:",
                    *wanted,
                ],
                INSTALL,
            ).code
            == 0
        )
    if not fetched:
        log(f"{address.name}: fetching wheels here and pushing them")
        _push_wheels(link, address, seen, python, wanted)
    done = link.call([python, "-E", "-B", "-c", scripts.PACKAGES], QUICK)
    if done.code != 0:
        raise DeviceFailed(
            f"{address.name}: numpy and onnxruntime were installed and cannot be imported: {_last(done.err)}"
        )
    return python


def _push_wheels(link: Link, address: Address, seen: Seen, python: str, wanted: list[str]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        wheels.download(folder, wanted, seen.machine, seen.version, seen.glibc)
        sums = {file.name: scripts.sha256(file) for file in sorted(folder.iterdir())}
        _sync(link, address, seen, folder, sums, "wheels")
    _python(link, address, python, scripts.INSTALL, {"folder": f"{seen.folder}/wheels"}, INSTALL)


def _python(
    link: Link, address: Address, python: str, script: str, order: dict[str, Any], limit_seconds: float
) -> dict[str, Any]:
    """Run one of our scripts there; it gets its order and gives its result as JSON."""
    done = link.call([python, "-E", "-B", "-c", script, json.dumps(order)], limit_seconds)
    if done.code != 0:
        said = _last(done.err or done.out)
        raise DeviceFailed(f"{address.name}: {_full(said) or said}; run the same command again to go on")
    result: dict[str, Any] = json.loads(done.out.partition(_MARK)[2])
    return result


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


def _full(said: str) -> str | None:
    """A sentence for a full disk, in the words of any program."""
    return (
        f"the disk is full ({said})" if re.search(r"no space left|disk quota|disk full", said, re.IGNORECASE) else None
    )


def quoted(argv: list[str]) -> str:
    """One line for a shell that hands exactly these arguments on."""
    return shlex.join(argv)
