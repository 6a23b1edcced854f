"""Empirical bias correction: what quantisation shifts a layer's mean output by is taken back in its bias, channel by channel.

Source: Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction", appendix D (empirical form).
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, NodeProto, helper, numpy_helper

from export.graph import layers, surgery
from export.runtime import SESSION_ERRORS, ExportError, Model, session_options

PIXELS = 16 * 224 * 224  # pictures that are enough, by their pixels: a convolution's mean is over its positions too
BATCH_PIXELS = 4 * 224 * 224


def corrected(model: ModelProto, quantized: ModelProto, images: np.ndarray, runtime: Model) -> ModelProto:
    """A copy of the float `model` with corrected biases. `quantized`: its QDQ form, nodes of equal names; images uint8 (N, H, W, 3).

    Layer after layer: the int8 form of a layer is seen behind layers that are corrected already. Layers left in float are not touched.
    """
    result = ModelProto()
    result.CopyFrom(model)
    own = biases(result)
    chosen = [node for node in layers.layers(result) if node.name in own and _is_quantized(quantized, node.name)]
    size = images[0, ..., 0].size
    images, batch = images[: max(16, PIXELS // size)], max(1, BATCH_PIXELS // size)
    pictures = [np.ascontiguousarray(images[start : start + batch]) for start in range(0, len(images), batch)]
    reference = _means(
        _session(_shown(result, [node.output[0] for node in chosen])),
        [node.output[0] for node in chosen],
        runtime,
        pictures,
        {},
    )
    outputs = {node.name: node.output[0] for node in quantized.graph.node}
    session = _session(
        _with_bias_inputs(quantized, [node.name for node in chosen], [outputs[node.name] for node in chosen])
    )
    values = {f"{node.name}_bias": own[node.name] for node in chosen}
    for node in chosen:
        output = outputs[node.name]
        shift = reference[node.output[0]] - _means(session, [output], runtime, pictures, values)[output]
        values[f"{node.name}_bias"] = (values[f"{node.name}_bias"] + shift).astype(np.float32)
    tensors = layers.stored(result)
    for node in chosen:
        name = node.input[2]
        tensors[name].CopyFrom(numpy_helper.from_array(values[f"{node.name}_bias"], name))
    return result


def biases(model: ModelProto) -> dict[str, np.ndarray]:
    """Give each Conv and Gemm a bias (channels,) of its own, in place; returns them by the layer's name. MatMul has none."""
    tensors, seen, found = layers.stored(model), set(), {}
    for node in layers.layers(model):
        if node.op_type == "MatMul":
            continue
        known = len(node.input) > 2 and node.input[2] != ""
        if known and node.input[2] not in tensors:
            continue  # computed
        channels = _channels(node, tensors[node.input[1]])
        value = numpy_helper.to_array(tensors[node.input[2]]).reshape(-1) if known else np.zeros(channels, np.float32)
        value = np.broadcast_to(value, (channels,)).astype(np.float32)
        if not known or node.input[2] in seen or tensors[node.input[2]].dims != [channels]:
            name = f"{node.name}_own_bias"
            model.graph.initializer.append(numpy_helper.from_array(value.copy(), name))
            del node.input[2:]
            node.input.append(name)
        seen.add(node.input[2])
        found[node.name] = value.copy()
    return found


def _channels(node: NodeProto, weight: onnx.TensorProto) -> int:
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "Conv":
        return weight.dims[0]
    if node.op_type == "ConvTranspose":
        return weight.dims[1] * attributes.get("group", 1)
    return weight.dims[0] if attributes.get("transB") else weight.dims[1]


def _is_quantized(quantized: ModelProto, name: str) -> bool:
    behind = surgery.producers(quantized.graph)
    node = next((node for node in quantized.graph.node if node.name == name), None)
    return node is not None and node.input[1] in behind and behind[node.input[1]].op_type == "DequantizeLinear"


def _shown(model: ModelProto, names: list[str]) -> ModelProto:
    """A copy whose outputs are these tensors."""
    shown = ModelProto()
    shown.CopyFrom(model)
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    return shown


def _with_bias_inputs(quantized: ModelProto, names: list[str], outputs: list[str]) -> ModelProto:
    """The QDQ graph with a float input `<layer>_bias` for each named layer: one session serves every correction."""
    shown = _shown(quantized, outputs)
    for node in shown.graph.node:
        if node.name in names:
            bias = f"{node.name}_bias"
            del node.input[2:]
            node.input.append(bias)
            shown.graph.input.append(helper.make_tensor_value_info(bias, onnx.TensorProto.FLOAT, [None]))
    return shown


def _session(model: ModelProto) -> onnxruntime.InferenceSession:
    options = session_options(1)
    # As it is written: Q and DQ compute what they say, and float layers between them stay visible.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except SESSION_ERRORS as error:
        raise ExportError(f"bias correction: onnxruntime cannot run the graph: {str(error).splitlines()[0]}") from error


def _means(
    session: onnxruntime.InferenceSession,
    outputs: list[str],
    runtime: Model,
    pictures: list[np.ndarray],
    values: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Mean of each output (N, C, ...) by channel, float64 (C,). Only what leads to `outputs` is computed."""
    run_options = onnxruntime.RunOptions()
    run_options.only_execute_path_to_fetches = True
    totals: dict[str, np.ndarray] = {}
    count = 0
    for batch in pictures:
        found = session.run(outputs, {**runtime.feed(batch), **values}, run_options)
        for name, value in zip(outputs, found, strict=True):
            by_channel = value.astype(np.float64).mean(axis=tuple(range(2, value.ndim))).sum(axis=0)
            totals[name] = totals.get(name, 0.0) + by_channel
        count += len(batch)
    return {name: total / count for name, total in totals.items()}
