"""What a file says of itself: classes, image size, layout and normalisation, in its metadata or beside it. Needs numpy alone.

Runs on Python 3.8 and numpy 1, because it travels inside the bundle.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

LAYOUTS = ("uint8_nhwc", "float_nchw", "float_nhwc")
INPUT, OUTPUT = "image", "logits"
FOREIGN = "another project"  # who made such a file
SIDECAR_SUFFIX = (
    ".contract.json"  # a file of another project has its contract beside it, in a file of its name with this behind it
)
METADATA_PREFIX = "compress."  # of the metadata keys; values are JSON


class ExportError(Exception):
    """A model cannot be exported, read, run or verified; the message is one sentence."""


class UnavailableError(ExportError):
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
        return {METADATA_PREFIX + name: json.dumps(getattr(self, name), ensure_ascii=False) for name in names}

    @staticmethod
    def from_metadata(metadata: dict[str, str]) -> Contract:
        """The inverse of `to_metadata`; other keys are ignored. Raises ExportError."""
        try:
            values = {name: json.loads(metadata[METADATA_PREFIX + name]) for name in METADATA_NAMES}
            return Contract(
                classes=tuple(str(name) for name in values["classes"]),
                image_size=int(values["image_size"]),
                mean=tuple(float(value) for value in values["mean"]),  # type: ignore[arg-type]
                std=tuple(float(value) for value in values["std"]),  # type: ignore[arg-type]
                layout=values["layout"],
                made_by=values["made_by"],
                preprocessing=json.loads(
                    metadata.get(METADATA_PREFIX + "preprocessing", "null")
                ),  # files of before it existed have none
            )
        except KeyError as error:
            raise ExportError(
                f"the model's metadata has no {error.args[0]!r}: it was not exported by this product"
            ) from error
        except (TypeError, ValueError) as error:
            raise ExportError(f"the model's metadata cannot be read: {error}") from error


METADATA_NAMES = ("classes", "image_size", "layout", "made_by", "mean", "std")


def read_sidecar(path: Path) -> Contract | None:
    """The contract that lies beside a file of another project; None where there is none. Raises ExportError."""
    try:
        values = json.loads(Path(str(path) + SIDECAR_SUFFIX).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ExportError(f"{path}{SIDECAR_SUFFIX}: not readable ({error})") from error
    contract = Contract.from_metadata({METADATA_PREFIX + name: json.dumps(values.get(name)) for name in METADATA_NAMES})
    order = values.get("order")
    return replace(
        contract,
        channels=values.get("channels", "rgb"),
        order=None if order is None else tuple(order),
        own_size=values.get("own_size"),
    )


def write_sidecar(path: Path, contract: Contract) -> Path:
    """Write a contract beside a file that has none inside; equal contracts give equal bytes."""
    values = {
        name: getattr(contract, name)
        for name in (*METADATA_NAMES, "channels", "order", *(("own_size",) if contract.own_size else ()))
    }
    beside = Path(str(path) + SIDECAR_SUFFIX)
    beside.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return beside


def copy_model(source: Path, target: Path) -> None:
    """A file, byte for byte, and the contract beside it where there is one."""
    shutil.copyfile(source, target)
    if Path(str(source) + SIDECAR_SUFFIX).is_file():
        shutil.copyfile(str(source) + SIDECAR_SUFFIX, str(target) + SIDECAR_SUFFIX)


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


def resize_matrix(before: int, after: int) -> np.ndarray:
    """Float32 (after, before): R x R^T resizes a square picture x bilinearly at pixel centres, with antialiasing where it shrinks."""
    scale = before / after
    reach = max(scale, 1.0)
    centres = (np.arange(after)[:, None] + 0.5) * scale
    weights = np.maximum(0.0, 1 - np.abs(np.arange(before)[None, :] + 0.5 - centres) / reach)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
