"""The contract of a model file: classes, image size, layout and normalisation, stored in its metadata or beside it.

Needs numpy alone. Runs on Python 3.8 and numpy 1, because it travels in the bundle.
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
# `Contract.made_by` of a file that was not exported by this product.
FOREIGN = "another project"
# A foreign file has its contract beside it, in a file with this suffix.
SIDECAR_SUFFIX = ".contract.json"
# The metadata keys of a file begin with this; their values are JSON.
METADATA_PREFIX = "compress."
METADATA_NAMES = ("classes", "image_size", "layout", "made_by", "mean", "std")


class ExportError(Exception):
    """A model cannot be exported, read, run or verified; the message is one sentence."""


class UnavailableError(ExportError):
    """A file or an execution provider that is needed is not there."""


@dataclass(frozen=True)
class Contract:
    """What an application must know to use a file.

    Attributes:
        classes: class names in the order of the logits.
        image_size: side in pixels of the images that `Model.run` takes.
        mean, std: per channel, RGB, of pixels in [0, 1].
        layout: `uint8_nhwc`: pixels as they are; `float_nchw`, `float_nhwc`: the application normalises.
        made_by: "name version" of the exporter, or FOREIGN.
        preprocessing: what the application must do from a photo to the input, as JSON values.
        channels: `rgb` or `bgr`; only a foreign file may have blue first.
        order: which output of a foreign file stands for each class; None: all, in order.
        own_size: side that a foreign file takes, if it differs: images of `image_size` are resized to it.
    """

    classes: tuple[str, ...]
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    layout: str
    made_by: str
    preprocessing: dict[str, Any] | None = None
    channels: str = "rgb"
    order: tuple[int, ...] | None = None
    own_size: int | None = None

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
        """Return the contract as ONNX metadata: JSON strings by key."""
        names = [*METADATA_NAMES] + ["preprocessing"] * (self.preprocessing is not None)
        return {METADATA_PREFIX + name: json.dumps(getattr(self, name), ensure_ascii=False) for name in names}

    @staticmethod
    def from_metadata(metadata: dict[str, str]) -> Contract:
        """Read a contract from ONNX metadata, ignoring other keys. Raises ExportError."""
        try:
            values = {name: json.loads(metadata[METADATA_PREFIX + name]) for name in METADATA_NAMES}
            return Contract(
                classes=tuple(str(name) for name in values["classes"]),
                image_size=int(values["image_size"]),
                mean=tuple(float(value) for value in values["mean"]),  # type: ignore[arg-type]
                std=tuple(float(value) for value in values["std"]),  # type: ignore[arg-type]
                layout=values["layout"],
                made_by=values["made_by"],
                # Files written before this key existed have none.
                preprocessing=json.loads(metadata.get(METADATA_PREFIX + "preprocessing", "null")),
            )
        except KeyError as error:
            raise ExportError(
                f"the model's metadata has no {error.args[0]!r}: it was not exported by this product"
            ) from error
        except (TypeError, ValueError) as error:
            raise ExportError(f"the model's metadata cannot be read: {error}") from error


def read_sidecar(path: Path) -> Contract | None:
    """Return the contract beside a foreign file, or None if there is none. Raises ExportError."""
    try:
        values = json.loads(_sidecar(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ExportError(f"{_sidecar(path)}: not readable ({error})") from error
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
    sidecar = _sidecar(path)
    sidecar.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return sidecar


def _sidecar(path: Path) -> Path:
    return Path(str(path) + SIDECAR_SUFFIX)


def copy_model(source: Path, target: Path) -> None:
    """Copy a file byte for byte, with the contract beside it if there is one."""
    shutil.copyfile(source, target)
    if _sidecar(source).is_file():
        shutil.copyfile(_sidecar(source), _sidecar(target))


def scale_and_shift(contract: Contract) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 (3,) each, so that `pixel * scale + shift` equals (pixel / 255 - mean) / std."""
    std = np.asarray(contract.std, dtype=np.float64)
    scale = 1.0 / (255.0 * std)
    shift = -np.asarray(contract.mean, dtype=np.float64) / std
    return scale.astype(np.float32), shift.astype(np.float32)


def normalize(images: np.ndarray, contract: Contract) -> np.ndarray:
    """Normalise uint8 (N, H, W, 3) to float32 (N, 3, H, W), for files that do not do it in their graph."""
    scale, shift = scale_and_shift(contract)
    return np.ascontiguousarray((images * scale + shift).transpose(0, 3, 1, 2))


def resize_matrix(before: int, after: int) -> np.ndarray:
    """Return a matrix R, float32 (after, before), so that R x R^T is the square image x resized to `after`.

    Bilinear at pixel centres, antialiased when it shrinks.
    """
    scale = before / after
    reach = max(scale, 1.0)
    centres = (np.arange(after)[:, None] + 0.5) * scale
    weights = np.maximum(0.0, 1 - np.abs(np.arange(before)[None, :] + 0.5 - centres) / reach)
    result: np.ndarray = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return result
