"""Static int8 in the QDQ format, with the settings that keep compact networks alive, one file per instruction set."""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from export import graph
from export.audit import Audit, audit
from export.runtime import OUTPUT, PREFIX, TARGETS, Contract, ExportError, Model

__all__ = ["Audit", "Quantized", "audit", "quantize"]

CALIBRATION_BATCH = 16


@dataclass(frozen=True)
class Quantized:
    """What was written. `nodes` counts the file's nodes by operator."""

    isa: str
    activation_type: str
    weight_type: str
    reduce_range: bool
    per_channel: bool
    calibration_images: int
    bytes: int
    nodes: dict[str, int]


class _Pictures:
    """Feeds calibration pictures in small batches.

    onnxruntime's MinMax calibration reduces every tensor to its minimum and maximum inside the graph, so what it keeps are two numbers
    a tensor and batch and memory stays flat. (Its CalibMaxIntermediateOutputs throws ranges away before merging them: never set.)
    """

    def __init__(self, images: np.ndarray, model: Model) -> None:
        self.batches = (model.feed(images[start : start + CALIBRATION_BATCH]) for start in range(0, len(images), CALIBRATION_BATCH))

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def quantize(source: Path, target: Path, images: np.ndarray, *, isa: str, per_channel: bool = True, calibrate: str = "minmax") -> Quantized:
    """Write the int8 form of the float file `source`, its ranges set by real pictures, uint8 (N, H, W, 3).

    x86-vnni: uint8 activations, int8 weights. x86-avx2: the same with weights of 7 bits, because vpmaddubsw adds pairs of products with
    saturation. arm64: int8 activations and weights. The last layer answers in float32. Raises ExportError.
    """
    _check_settings(isa, per_channel, calibrate)
    model = Model.load(source)
    if len(images) == 0:
        raise ExportError("calibration needs at least one picture")
    model.check(images)
    opset = graph.opset_of(onnx.load(str(source)))
    activations = "int8" if isa == "arm64" else "uint8"
    with tempfile.TemporaryDirectory() as folder, _quiet():
        quantized = _quantize_static(source, Path(folder), _Pictures(images, model), activations, isa == "x86-avx2", per_channel)
    _float_logits(quantized)
    _finish(quantized, target, model.contract, isa, opset)
    saved = graph.check(target, opset=opset)
    size = target.stat().st_size
    return Quantized(isa, activations, "int8", isa == "x86-avx2", per_channel, len(images), size, graph.op_counts(saved))


def _check_settings(isa: str, per_channel: bool, calibrate: str) -> None:
    if isa not in TARGETS:
        raise ExportError(f"no int8 settings for {isa!r}; known are {', '.join(TARGETS)}")
    if calibrate != "minmax":
        raise ExportError(f"calibration {calibrate!r} is not known; use minmax")
    if isa == "x86-avx2" and not per_channel:
        raise ExportError("x86-avx2 needs per-channel weights: with its reduced range, one scale a tensor ruins compact networks")


def _quantize_static(
    source: Path, folder: Path, pictures: _Pictures, activations: str, reduce_range: bool, per_channel: bool
) -> onnx.ModelProto:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quant_pre_process, quantize_static

    prepared, result = folder / "prepared.onnx", folder / "quantized.onnx"
    quant_pre_process(str(source), str(prepared))
    # op_types_to_quantize stays unset: naming types leaves Clip out, and the range before a ReLU6 (seen up to 373) is quantised
    # instead of [0, 6].
    quantize_static(
        str(prepared),
        str(result),
        pictures,
        quant_format=QuantFormat.QDQ,
        per_channel=per_channel,
        reduce_range=reduce_range,
        activation_type=QuantType.QInt8 if activations == "int8" else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=_before_first_layer(onnx.load(str(prepared))),
        calibrate_method=CalibrationMethod.MinMax,
    )
    return onnx.load(str(result))


def _before_first_layer(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that only prepare pixels: they read nothing that a layer with weights has touched."""
    touched: set[str] = set()
    names = []
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul") or touched.intersection(node.input):
            touched.update(node.output)
        else:
            names.append(node.name)
    return names


def _float_logits(model: onnx.ModelProto) -> None:
    """Remove the Q/DQ pair behind the last layer: 256 levels of logits would only add ties; the integer kernel can answer in float32."""
    behind = graph.producers(model.graph)
    dequantize = behind[OUTPUT]
    if dequantize.op_type != "DequantizeLinear":
        return
    quantize_node = behind.get(dequantize.input[0])
    last = behind.get(quantize_node.input[0]) if quantize_node is not None and quantize_node.op_type == "QuantizeLinear" else None
    if last is None or quantize_node is None or len(graph.consumers(model.graph)[last.output[0]]) != 1:
        return
    last.output[0] = OUTPUT
    model.graph.node.remove(quantize_node)
    model.graph.node.remove(dequantize)


def _finish(model: onnx.ModelProto, target: Path, contract: Contract, isa: str, opset: int) -> None:
    if graph.opset_of(model) != opset:
        raise ExportError(f"{target.name}: quantisation changed opset {opset} to {graph.opset_of(model)}")
    graph.clean(model, {**contract.to_metadata(), PREFIX + "target": json.dumps(isa)}, made_by=contract.made_by)
    target.parent.mkdir(parents=True, exist_ok=True)
    graph.save(model, target)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
