"""Reports what this machine has, and for what is missing the command that installs it."""

from __future__ import annotations

import errno
import importlib
import importlib.metadata
import importlib.util
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path

# Import name -> (distribution, what it is for).
REQUIRED = {
    "torch": ("torch", "training"),
    "torchvision": ("torchvision", "data sets and pretrained networks"),
    "onnx": ("onnx", "export"),
    "onnxscript": ("onnxscript", "export"),
    "onnxruntime": ("onnxruntime", "int8, measuring, verifying"),
    "numpy": ("numpy", "everything"),
    "safetensors": ("safetensors", "weights"),
    "PIL": ("pillow", "decoding photos"),
    "matplotlib": ("matplotlib", "the report's plots"),
}
PYTHON = (3, 11)

# What, "ok" | "missing" | "note", detail.
Row = tuple[str, str, str]


def examine(artifacts: Path = Path("artifacts")) -> list[Row]:
    """Return rows of (what, state, detail).

    A state is ok, note (it works, but is worth knowing) or missing (no run could finish).
    """
    enough = sys.version_info[:2] >= PYTHON
    python = (
        platform.python_version() if enough else f"{platform.python_version()}; needs {PYTHON[0]}.{PYTHON[1]} or newer"
    )
    rows: list[Row] = [("python", "ok" if enough else "missing", python)]
    rows += [_package(name, *about) for name, about in REQUIRED.items()]
    present = {row[0] for row in rows if row[1] == "ok"}
    if "torch" in present:
        rows += [_accelerator(), _kernels()]
    if {"onnxruntime", "numpy"} <= present:
        rows += _runtime()
    return [*rows, _data(), _disk(artifacts)]


def _package(module: str, distribution: str, purpose: str) -> Row:
    """Check a package by importing it, which also finds a broken or mismatched build."""
    pip = f"{Path(sys.executable).name} -m pip install"
    if importlib.util.find_spec(module) is None:
        return distribution, "missing", f"for {purpose}; install it with: {pip} {distribution}"
    try:
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        return (
            distribution,
            "missing",
            f"cannot be imported ({reason}); repair it with: {pip} --force-reinstall {distribution}",
        )
    return distribution, "ok", importlib.metadata.version(distribution)


def _accelerator() -> Row:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
        return "accelerator", "ok", f"CUDA {torch.version.cuda}: {names}"
    if torch.backends.mps.is_available():
        return "accelerator", "ok", "Metal (mps)"
    return "accelerator", "note", "none: training runs on the CPU, which is enough for small recipes"


def _kernels() -> Row:
    from compress.training.kernels.library import load_kernels, unavailable_reason

    made = load_kernels()
    return (
        ("CPU kernels", "ok", made.compiler)
        if made
        else ("CPU kernels", "note", f"{unavailable_reason()}: training on the CPU is slower, with torch's BatchNorms")
    )


def _runtime() -> list[Row]:
    from export.runtime import host, provider

    here = host()
    fast = here["isa"] in ("x86-vnni", "arm64")
    int8 = here["isa"] if fast else f"{here['isa']}: no int8 dot product, so int8 is smaller and hardly faster here"
    memory = "unknown" if here["memory_bytes"] is None else f"{here['memory_bytes'] / 2**30:.1f} GiB"
    return [
        ("runtime providers", "ok", ", ".join(f"{name} {provider.known(name)}" for name in provider.available())),
        ("cpu", "ok", f"{here['cpu'] or 'unknown'}, {here['cores']} cores for this process"),
        ("int8 target", "ok" if fast else "note", int8),
        ("memory", "ok", memory),
    ]


def _data() -> Row:
    folder = Path(str(resources.files("compress"))) / "data" / "embedded"
    files = sorted(folder.glob("*.npz"))
    if not files:
        return (
            "embedded data",
            "missing",
            "the package is incomplete; install it again: pip install --force-reinstall .",
        )
    return "embedded data", "ok", ", ".join(f"{path.name} ({path.stat().st_size / 1e6:.1f} MB)" for path in files)


def _disk(artifacts: Path) -> Row:
    """Check the free space where results go, and whether a run may write there."""
    place = next(folder for folder in (artifacts.absolute(), *artifacts.absolute().parents) if folder.exists())
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):  # the free space shows those
            return (
                "disk",
                "missing",
                f"{place} cannot be written ({error.strerror}); choose another place with --artifacts",
            )
    free = shutil.disk_usage(place).free / 2**30
    detail = f"{free:.1f} GiB free for {artifacts}"
    return "disk", "ok" if free >= 1 else "note", detail if free >= 1 else f"{detail}; a run may need 1 GiB"


def run_self_test(report: Callable[[str], None]) -> bool:
    """Plant known faults, one line each, and return whether the verdict caught and named all that can be shown here."""
    from compress.commands.doctor import self_test

    states = {True: "caught", False: "MISSED", None: "note"}
    control_states = {True: "ok", False: "WRONG", None: "note"}
    report("a small network is trained, then one fault after the other is planted (about half a minute)")
    begin = time.monotonic()

    def show(result: self_test.FaultResult) -> None:
        state = (control_states if result.control else states)[result.caught]
        report(f"{state:<7} {result.name:<36} {result.detail}")

    good = self_test.run(show)
    verdict = "every fault was caught and named" if good else "the verdict cannot be trusted on this machine"
    report(f"{verdict}; {time.monotonic() - begin:.0f} s")
    return good
