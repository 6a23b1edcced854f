"""The C kernels, compiled for this processor when a training first wants them, and kept in the user's cache folder.

They need a C compiler with OpenMP (gcc, or clang with libomp), and a torch whose threads are OpenMP's. Without these,
torch's own operators run.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch

# The first is compiled; it includes the others.
SOURCES = ("batch_norm.c", "batch_norm.h", "batch_norm_passes.h")
# OpenMP's symbols are left undefined and resolve to the OpenMP that torch has loaded, so there is one set of threads.
FLAGS = ("-O3", "-std=c11", "-fPIC", "-fopenmp", "-fno-math-errno", "-ffp-contract=fast", "-c")
TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
# Stop a compiler that hangs.
COMPILER_TIMEOUT_SECONDS = 120


@dataclass(frozen=True)
class KernelLibrary:
    """The compiled functions by dtype of the maps.

    Attributes:
        compiler: the first line that the C compiler prints about its version.
    """

    forward: dict[torch.dtype, Any]
    backward: dict[torch.dtype, Any]
    compiler: str


def load_kernels() -> KernelLibrary | None:
    """Return the kernels, or None where they are unavailable; see `unavailable_reason`."""
    return _load()[0]


def unavailable_reason() -> str | None:
    """Return why the kernels are unavailable in one sentence, or None where they are there."""
    return _load()[1]


@functools.cache
def _load() -> tuple[KernelLibrary | None, str | None]:
    compiler = next(
        (found for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name and (found := shutil.which(name))), None
    )
    if compiler is None:
        return None, "no C compiler is installed (cc, gcc or clang, or what CC names)"
    try:
        version = _output_of(compiler, "--version").splitlines()[0]
        return _functions(ctypes.CDLL(str(_file(compiler, version, _native_flag()))), version), None
    # RuntimeError: there is no home folder.
    except (OSError, subprocess.SubprocessError, AttributeError, IndexError, RuntimeError) as error:
        text = getattr(error, "stderr", None) or str(error)
        # A compiler that took too long leaves bytes.
        text = text.decode(errors="replace") if isinstance(text, bytes) else text
        reason = " ".join(text.strip().splitlines()[-1:]) or type(error).__name__
        return None, f"{compiler} does not compile them ({reason})"


def _output_of(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=COMPILER_TIMEOUT_SECONDS).stdout


def _native_flag() -> str:
    return "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"


def _file(compiler: str, version: str, target: str) -> Path:
    """Return the library for a target, compiled where it is missing; its name is a digest of all that it depends on."""
    flags = (*FLAGS, target)
    texts = {name: resources.files(__package__).joinpath(name).read_text() for name in SOURCES}
    digest = hashlib.sha256(
        "\0".join((*texts.values(), compiler, version, *flags, _processor(), torch.__version__)).encode()
    ).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "compress" / "kernels"
    path = cache / f"{digest}.so"
    if path.is_file():
        return path
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        for name, text in texts.items():
            (Path(folder) / name).write_text(text)
        _output_of(compiler, *flags, str(Path(folder) / SOURCES[0]), "-o", str(Path(folder) / "kernels.o"))
        _output_of(compiler, "-shared", str(Path(folder) / "kernels.o"), "-o", str(Path(folder) / "kernels.so"), "-lm")
        # Another process may do the same.
        os.replace(Path(folder) / "kernels.so", path)
    return path


def _processor() -> str:
    """Return what the native flag depends on: different machines may share a home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(
        sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    )


def _functions(loaded: ctypes.CDLL, version: str) -> KernelLibrary:
    pointer, count, real, integer = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int
    forward, backward = {}, {}
    for dtype, name in TYPES.items():
        forward[dtype] = getattr(loaded, f"forward_{name}")
        forward[dtype].argtypes = [*[pointer] * 2, count, count, *[pointer] * 2, *[real] * 4, *[pointer] * 7, integer]
        backward[dtype] = getattr(loaded, f"backward_{name}")
        backward[dtype].argtypes = [*[pointer] * 3, count, count, *[pointer] * 4, *[real] * 2, *[pointer] * 4, integer]
    return KernelLibrary(forward, backward, version)
