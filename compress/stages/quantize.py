"""Static int8 for one target, calibrated on training pictures through the evaluation pre-processing."""

from __future__ import annotations

import export.quantize
from compress.data import calibration_arrays
from compress.errors import StageError, UsageError
from compress.results import CalibrationData, Exported, File, Quantized
from compress.schema import Quantize
from compress.store import Context, Stage
from export.runtime import ExportError, isa


def resolve_target(target: str) -> str:
    """`auto` is this machine, since device.target is local. Raises UsageError where int8 has no rule for it."""
    if target != "auto":
        return target
    here = isa()
    if here not in ("x86-vnni", "x86-avx2", "arm64"):
        raise UsageError(f"quantize.target: there is no int8 rule for this machine ({here}); name one of x86-vnni, x86-avx2, arm64, or set scheme: none")
    return here


def _run(config: Quantize, *, context: Context, model: Exported, data: CalibrationData, target: str, versions: dict[str, str]) -> Quantized:
    """QDQ int8, per channel; activation and weight types follow from the target."""
    images, _ = calibration_arrays(data)
    path = context.work / "model.int8.onnx"
    try:
        made = export.quantize.quantize(model.file.path, path, images, isa=target, per_channel=config.per_channel, calibrate=config.calibrate)
    except ExportError as error:
        raise StageError(f"quantize: {error}") from error
    return Quantized(
        file=File.of(path),
        target=target,
        activation_type=made.activation_type,
        weight_type=made.weight_type,
        calibration_pictures=made.calibration_images,
    )


run = Stage("quantize", 1, _run, Quantized)
