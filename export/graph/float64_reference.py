"""A float graph evaluated in float64, to judge rewrites that must not change it.

In float32, two orders of the same sums differ by rounding, and so do two runs of one graph under other optimisations:
on networks for 224 pixels, by 2e-7 to 6e-6 of the largest logit. A limit of 1e-6 would judge that noise. In float64 the
noise is nine orders smaller, and a constant that is off in its seventh digit shows.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, numpy_helper

from export.graph import surgery
from export.runtime import INPUT, OUTPUT, Contract, ExportError, normalize

# An image of 224 pixels takes 0.2 s (MobileNetV3-small) to 1.4 s (ResNet-18).
MAX_IMAGES = 4
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


def logits(model: ModelProto, contract: Contract, images: np.ndarray) -> np.ndarray:
    """Return logits float64 (N, K) on images uint8 (N, H, W, 3), by onnx's reference evaluator. Raises ExportError."""
    from onnx.reference import ReferenceEvaluator

    feed = images if contract.layout == "uint8_nhwc" else normalize(images, contract).astype(np.float64)
    try:
        (found,) = ReferenceEvaluator(in_double(model)).run([OUTPUT], {INPUT: feed})
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise ExportError(f"the graph cannot be evaluated in float64: {str(error).splitlines()[0]}") from error
    assert isinstance(found, np.ndarray)
    if found.dtype != np.float64:
        raise ExportError(
            f"the graph's logits are {found.dtype} in a float64 evaluation: a constant or cast keeps another type"
        )
    return found


def in_double(model: ModelProto) -> ModelProto:
    """Return a copy whose constants, casts, inputs and outputs are float64; constants keep their float32 values."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.data_type in FLOATS:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for node in copy.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in FLOATS:
                attribute.i = TensorProto.DOUBLE
            elif attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type in FLOATS:
                attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float64)))
    for value in (*copy.graph.input, *copy.graph.output):
        if value.type.tensor_type.elem_type in FLOATS:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    surgery.replace(copy.graph.value_info, [])
    return copy
