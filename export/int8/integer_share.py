"""The share of a float file that would run in integers once it is quantised."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from export.graph.executed import INTEGER, audit
from export.int8.quantize import quantize
from export.runtime import isa


def integer_share(path: Path, images: np.ndarray) -> float:
    """Return the share in [0, 1] of integer kernels among all that this machine executes for the file's int8 form.

    `images`, uint8 (N, H, W, 3), are for calibration. The int8 file is written beside `path`.
    """
    quantized = path.with_suffix(".int8.onnx")
    quantize(path, quantized, images, isa="arm64" if isa() == "arm64" else "x86-vnni")
    executed = audit(quantized).executed
    integer = sum(count for op, count in executed.items() if op.startswith("QLinear") or op in INTEGER)
    return integer / sum(executed.values())
