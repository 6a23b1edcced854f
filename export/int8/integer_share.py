"""How much of a float file would run in integers once it is quantised."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from export.graph.executed import INTEGER, audit
from export.int8.quantize import quantize
from export.runtime import isa


def integer_share(path: Path, pictures: np.ndarray) -> float:
    """Return the share in [0, 1] of integer kernels among all that this machine executes for the file's int8 form.

    `pictures`: uint8 (N, H, W, 3), for calibration. The int8 file is written beside `path`.
    """
    quantized = path.with_suffix(".int8.onnx")
    quantize(path, quantized, pictures, isa="arm64" if isa() == "arm64" else "x86-vnni")
    executed = audit(quantized).executed
    return sum(count for op, count in executed.items() if op.startswith("QLinear") or op in INTEGER) / sum(
        executed.values()
    )
