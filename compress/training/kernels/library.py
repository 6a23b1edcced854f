"""The project's C kernels: compiled for this processor when a training first wants them, kept in the user's cache folder.

They need a C compiler with OpenMP (gcc, or clang with libomp) and torch's threads to be OpenMP's. Where one is missing, torch's own operators run.
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

SOURCES = ("batch_norm.c", "batch_norm.h")
# Undefined OpenMP symbols at link time: they resolve to the OpenMP that torch has loaded, so that there is one set of threads, not two.
FLAGS = ("-O3", "-std=c11", "-fPIC", "-fopenmp", "-fno-math-errno", "-ffp-contract=fast", "-c")
TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
SECONDS = 120  # for a compiler that hangs


@dataclass(frozen=True)
class Library:
    """Functions by dtype of the maps. `made_by`: the compiler's own first line."""

    forward: dict[torch.dtype, Any]
    backward: dict[torch.dtype, Any]
    made_by: str


def library() -> Library | None:
    """The kernels; None where they cannot be had here: `why_not` says why."""
    return _load()[0]


def why_not() -> str | None:
    """One sentence where the kernels cannot be had; None where they can."""
    return _load()[1]


@functools.cache
def _load() -> tuple[Library | None, str | None]:
    compiler = next(
        (found for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name and (found := shutil.which(name))), None
    )
    if compiler is None:
        return None, "no C compiler is installed (cc, gcc or clang, or what CC names)"
    try:
        version = _said(compiler, "--version").splitlines()[0]
        return _functions(ctypes.CDLL(str(_file(compiler, version, _native()))), version), None
    except (
        OSError,
        subprocess.SubprocessError,
        AttributeError,
        IndexError,
        RuntimeError,
    ) as error:  # RuntimeError: there is no home folder
        said = getattr(error, "stderr", None) or str(error)
        said = said.decode(errors="replace") if isinstance(said, bytes) else said  # of a compiler that took too long
        return (
            None,
            f"{compiler} does not make them ({' '.join(said.strip().splitlines()[-1:]) or type(error).__name__})",
        )


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS).stdout


def _native() -> str:
    return "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"


def _file(compiler: str, version: str, target: str) -> Path:
    """The library compiled for a target, made where it is not there yet; named by all that it follows from."""
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
        _said(compiler, *flags, str(Path(folder) / SOURCES[0]), "-o", str(Path(folder) / "kernels.o"))
        _said(compiler, "-shared", str(Path(folder) / "kernels.o"), "-o", str(Path(folder) / "kernels.so"), "-lm")
        os.replace(Path(folder) / "kernels.so", path)  # another process may do the same
    return path


def _processor() -> str:
    """What `native` follows from: a home folder may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(
        sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    )


def _functions(loaded: ctypes.CDLL, version: str) -> Library:
    pointer, count, real, integer = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int
    forward, backward = {}, {}
    for dtype, name in TYPES.items():
        forward[dtype] = getattr(loaded, f"forward_{name}")
        forward[dtype].argtypes = [*[pointer] * 2, count, count, *[pointer] * 2, *[real] * 4, *[pointer] * 7, integer]
        backward[dtype] = getattr(loaded, f"backward_{name}")
        backward[dtype].argtypes = [*[pointer] * 3, count, count, *[pointer] * 4, *[real] * 2, *[pointer] * 4, integer]
    return Library(forward, backward, version)
