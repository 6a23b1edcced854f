"""What runs a model on the device: the contract stored in the file, one session, and what the host is.

Standard library, numpy and onnxruntime only; runs on Python 3.8 and numpy 1, because it travels inside the bundle.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as _state

from export.runtime import conditions

LAYOUTS = ("uint8_nhwc", "float_nchw", "float_nhwc")
TARGETS = (
    "x86-vnni",
    "x86-avx2",
    "arm64",
    "web",
)  # what an int8 file can be built for; web: onnxruntime-web's wasm kernels
INPUT, OUTPUT = "image", "logits"
FOREIGN = "another project"  # who made such a file
BESIDE = (
    ".contract.json"  # a file of another project has its contract beside it, in a file of its name with this behind it
)
CPU = "CPUExecutionProvider"
PREFIX = "compress."  # of the metadata keys; values are JSON

# onnxruntime's exceptions share no base class of their own.
SESSION_ERRORS = tuple(
    kind for kind in vars(_state).values() if isinstance(kind, type) and issubclass(kind, Exception)
) + (RuntimeError,)


class ExportError(Exception):
    """A model cannot be exported, read, run or verified; the message is one sentence."""


class MissingError(ExportError):
    """A file that is needed does not exist."""


@dataclass(frozen=True)
class Contract:
    """What an application must know to use a file. `mean` and `std` are per channel, RGB, of pixels in [0, 1]."""

    classes: tuple[str, ...]
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    layout: str  # uint8_nhwc: pixels as they are | float_nchw, float_nhwc: the application normalises
    made_by: str  # "name version"
    preprocessing: dict[str, Any] | None = None  # what the application must do from a picture to the input; JSON values
    channels: str = "rgb"  # rgb | bgr; only a file of another project may have blue first
    order: tuple[int, ...] | None = None  # which of such a file's outputs stands for each class; None: all, in order
    own_size: int | None = (
        None  # side that such a file takes: pictures of image_size are resized to it; None: image_size
    )

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise ExportError(f"layout {self.layout!r} is not one of {', '.join(LAYOUTS)}")
        if not self.classes or self.image_size < 1:
            raise ExportError("a contract needs at least one class and a positive image_size")
        numbers = (*self.mean, *self.std)
        if (
            len(self.mean) != 3
            or len(self.std) != 3
            or not all(math.isfinite(number) for number in numbers)
            or min(self.std) <= 0
        ):
            raise ExportError("mean and std must be three finite numbers each, std above 0")

    def to_metadata(self) -> dict[str, str]:
        """ONNX metadata: JSON strings by key."""
        names = ["classes", "image_size", "layout", "made_by", "mean", "std"] + ["preprocessing"] * (
            self.preprocessing is not None
        )
        return {PREFIX + name: json.dumps(getattr(self, name), ensure_ascii=False) for name in names}

    @staticmethod
    def from_metadata(metadata: dict[str, str]) -> Contract:
        """The inverse of `to_metadata`; other keys are ignored. Raises ExportError."""
        try:
            values = {name: json.loads(metadata[PREFIX + name]) for name in NAMES}
            return Contract(
                classes=tuple(str(name) for name in values["classes"]),
                image_size=int(values["image_size"]),
                mean=tuple(float(value) for value in values["mean"]),  # type: ignore[arg-type]
                std=tuple(float(value) for value in values["std"]),  # type: ignore[arg-type]
                layout=values["layout"],
                made_by=values["made_by"],
                preprocessing=json.loads(
                    metadata.get(PREFIX + "preprocessing", "null")
                ),  # files of before it existed have none
            )
        except KeyError as error:
            raise ExportError(
                f"the model's metadata has no {error.args[0]!r}: it was not exported by this product"
            ) from error
        except (TypeError, ValueError) as error:
            raise ExportError(f"the model's metadata cannot be read: {error}") from error


NAMES = ("classes", "image_size", "layout", "made_by", "mean", "std")


def read_beside(path: Path) -> Contract | None:
    """The contract that lies beside a file of another project; None where there is none. Raises ExportError."""
    try:
        values = json.loads(Path(str(path) + BESIDE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ExportError(f"{path}{BESIDE}: not readable ({error})") from error
    contract = Contract.from_metadata({PREFIX + name: json.dumps(values.get(name)) for name in NAMES})
    order = values.get("order")
    return replace(
        contract,
        channels=values.get("channels", "rgb"),
        order=None if order is None else tuple(order),
        own_size=values.get("own_size"),
    )


def write_beside(path: Path, contract: Contract) -> Path:
    """Write a contract beside a file that has none inside; equal contracts give equal bytes."""
    values = {
        name: getattr(contract, name)
        for name in (*NAMES, "channels", "order", *(("own_size",) if contract.own_size else ()))
    }
    beside = Path(str(path) + BESIDE)
    beside.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return beside


def copy_model(source: Path, target: Path) -> None:
    """A file, byte for byte, and the contract beside it where there is one."""
    shutil.copyfile(source, target)
    if Path(str(source) + BESIDE).is_file():
        shutil.copyfile(str(source) + BESIDE, str(target) + BESIDE)


def scale_and_shift(contract: Contract) -> tuple[np.ndarray, np.ndarray]:
    """float32 (3,) each, so that `pixel * scale + shift` equals (pixel / 255 - mean) / std."""
    std = np.asarray(contract.std, dtype=np.float64)
    return (1.0 / (255.0 * std)).astype(np.float32), (-np.asarray(contract.mean, dtype=np.float64) / std).astype(
        np.float32
    )


def normalize(images: np.ndarray, contract: Contract) -> np.ndarray:
    """uint8 (N, H, W, 3) to float32 (N, 3, H, W): the one place where pixels are normalised outside a graph."""
    scale, shift = scale_and_shift(contract)
    return np.ascontiguousarray((images * scale + shift).transpose(0, 3, 1, 2))


def resizing(before: int, after: int) -> np.ndarray:
    """Float32 (after, before): R x R^T resizes a square picture x bilinearly at pixel centres, with antialiasing where it shrinks."""
    scale = before / after
    reach = max(scale, 1.0)
    centres = (np.arange(after)[:, None] + 0.5) * scale
    weights = np.maximum(0.0, 1 - np.abs(np.arange(before)[None, :] + 0.5 - centres) / reach)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Fixed threads and every graph optimisation: what an application should ship.

    Idle threads do not spin: spinning burns the other cores of a shared or battery-powered device, and with a busy neighbour it was
    measured slower (12.8 against 7.8 ms, two threads).
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options


class Model:
    """An ONNX file with a contract, loaded on the CPU, or in another execution provider with the CPU behind it."""

    def __init__(
        self, session: onnxruntime.InferenceSession, contract: Contract, target: str | None, load_ms: float
    ) -> None:
        self.session = session
        self.contract = contract
        self.target = target  # the instruction set that an int8 file was built for; None for float
        self.load_ms = load_ms
        self.input, self.output = session.get_inputs()[0].name, session.get_outputs()[0].name
        own = contract.own_size
        self.resizing = None if own in (None, contract.image_size) else resizing(contract.image_size, own)

    @staticmethod
    def load(
        path: str | Path,
        threads: int = 1,
        provider: str | None = None,
        *,
        profile: str | None = None,
        as_written: bool = False,
    ) -> Model:
        """Raises MissingError, or ExportError where onnxruntime refuses the file or the contract is absent.

        `provider`: onnxruntime's name of an execution provider. `profile`: where the names of files with times of single nodes begin.
        `as_written`: every operator by itself, so that no integer kernel of this machine takes part.
        """
        if threads < 1:
            raise ExportError(f"threads must be at least 1, not {threads}")
        if not Path(path).is_file():
            raise MissingError(f"{path}: no such file")
        options = session_options(threads)
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, profile
        if as_written:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        providers = list(dict.fromkeys([provider or CPU, CPU]))
        start = time.perf_counter()
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except SESSION_ERRORS as error:
            reason = str(error).splitlines()[0]
            raise ExportError(
                f"{path}: onnxruntime {onnxruntime.__version__} cannot load this file: {reason}"
            ) from error
        load_ms = (time.perf_counter() - start) * 1e3
        metadata = session.get_modelmeta().custom_metadata_map
        foreign = read_beside(Path(path))
        contract = foreign or Contract.from_metadata(metadata)
        names = [value.name for value in session.get_inputs()], [value.name for value in session.get_outputs()]
        if foreign is None and names != ([INPUT], [OUTPUT]):
            raise ExportError(
                f"{path}: expected one input {INPUT!r} and one output {OUTPUT!r}, found {names[0]} and {names[1]}"
            )
        target = metadata.get(PREFIX + "target")
        return Model(session, contract, None if target is None else json.loads(target), load_ms)

    def feed(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """The session's input for uint8 (N, H, W, 3)."""
        if self.contract.layout == "uint8_nhwc":
            return {self.input: images}
        pixels = normalize(images, self.contract)
        if self.resizing is not None:
            pixels = np.matmul(np.matmul(self.resizing, pixels), self.resizing.T)
        if self.contract.channels == "bgr":
            pixels = np.ascontiguousarray(pixels[:, ::-1])
        return {
            self.input: np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
            if self.contract.layout == "float_nhwc"
            else pixels
        }

    def check(self, images: np.ndarray) -> None:
        """Raises ExportError unless `images` is uint8 (N, image_size, image_size, 3)."""
        size = self.contract.image_size
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (size, size, 3):
            raise ExportError(f"images must be uint8 (N, {size}, {size}, 3), not {images.dtype} {images.shape}")

    def run(self, images: np.ndarray, batch: int = 64) -> np.ndarray:
        """Logits float32 (N, K) of uint8 (N, H, W, 3), `batch` pictures at a time."""
        self.check(images)
        fixed = self.session.get_inputs()[0].shape[0]
        batch = fixed if isinstance(fixed, int) else batch
        parts = [np.zeros((0, len(self.contract.classes)), dtype=np.float32)]
        order = self.contract.order
        for start in range(0, len(images), batch):
            part = np.ascontiguousarray(images[start : start + batch])
            short = batch - len(part) if isinstance(fixed, int) else 0  # such a file takes whole batches only
            padded = np.concatenate([part, np.repeat(part[-1:], short, axis=0)]) if short else part
            (logits,) = self.session.run([self.output], self.feed(padded))
            parts.append((logits if order is None else logits[:, list(order)])[: len(part)])
        return np.concatenate(parts)


def runs_on(target: str | None, isa: str) -> bool:
    """Whether a file built for `target` is meant for `isa`; float files run anywhere, a reduced range is right with VNNI too."""
    return target is None or target == isa or (target, isa) == ("x86-avx2", "x86-vnni")


def saturates(target: str | None, isa: str) -> bool:
    """Whether kernels of `isa` give other answers than a file built for `target` means: x86 without VNNI adds products in pairs, in 16 bits."""
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
    """x86-vnni | x86-avx2 | x86 | arm64 | the machine's own name. Without /proc an x86 is `x86`: nothing is guessed."""
    return conditions.isa_of(platform.machine(), _field(_read("/proc/cpuinfo"), "flags") or "")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def host() -> dict[str, Any]:
    """What this machine is; stable between calls. What cannot be read is None."""
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
