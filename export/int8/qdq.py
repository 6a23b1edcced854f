"""Q/DQ pairs in a float graph: onnxruntime's quantiser given our ranges, and which nodes it leaves alone."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto

from export.graph import surgery
from export.graph.quiet import quiet
from export.int8 import calibrate
from export.runtime import OUTPUT


def insert_pairs(
    model: ModelProto,
    ranges: dict[str, tuple[float, float]],
    *,
    per_channel: bool,
    reduce_range: bool,
    activations: str,
    exclude: tuple[str, ...],
) -> ModelProto:
    """Return a copy of a float graph with Q/DQ pairs.

    Args:
        model: the float graph.
        ranges: (low, high) of each activation.
        per_channel: whether weights have one scale a channel.
        reduce_range: whether weights have 7 bits.
        activations: their type, `int8` or `uint8`.
        exclude: names of the nodes that stay in float.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    copy = ModelProto()
    copy.CopyFrom(model)
    limits = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high))
        for name, (low, high) in calibrate.with_fused(ranges, copy).items()
    }
    with quiet():
        quantizer = QDQQuantizer(
            copy,
            per_channel,
            reduce_range,
            QuantType.QInt8,
            QuantType.QInt8 if activations == "int8" else QuantType.QUInt8,
            TensorsData(CalibrationMethod.MinMax, limits),
            [],
            list(exclude),
            # Every type that it knows. Naming a few would leave Clip out, and the range before a ReLU6 (seen up to 373)
            # would be quantised instead of [0, 6].
            sorted({*QDQRegistry, *QLinearOpsRegistry}),
            {},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    result: ModelProto = quantizer.model.model
    return result


def nodes_before_first_layer(model: ModelProto) -> list[str]:
    """Return the names of the nodes that only prepare pixels: they read nothing that a layer with weights touched."""
    touched: set[str] = set()
    names = []
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul") or touched.intersection(node.input):
            touched.update(node.output)
        else:
            names.append(node.name)
    return names


def keep_logits_in_float(model: ModelProto) -> None:
    """Remove the Q/DQ pair behind the last layer, whose integer kernel can answer in float32.

    256 levels of logits would only add ties.
    """
    behind = surgery.producers(model.graph)
    dequantize = behind[OUTPUT]
    if dequantize.op_type != "DequantizeLinear":
        return
    quantize = behind.get(dequantize.input[0])
    if quantize is None or quantize.op_type != "QuantizeLinear":
        return
    last = behind.get(quantize.input[0])
    if last is None or len(surgery.consumers(model.graph)[last.output[0]]) != 1:
        return
    last.output[0] = OUTPUT
    model.graph.node.remove(quantize)
    model.graph.node.remove(dequantize)
