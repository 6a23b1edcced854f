"""Empirical bias correction: the shift of a layer's mean output by quantisation is taken back in its bias.

Source: Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction", appendix D
(empirical form).
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, NodeProto, helper, numpy_helper

from export.graph import layers, surgery
from export.runtime import SESSION_ERRORS, ExportError, Model, session_options

# Images that are enough, by their pixels: a convolution's mean is over its positions, too.
ENOUGH_PIXELS = 16 * 224 * 224
BATCH_PIXELS = 4 * 224 * 224


def corrected(model: ModelProto, quantized: ModelProto, images: np.ndarray, runtime: Model) -> ModelProto:
    """Return a copy of the float graph with corrected biases.

    Layers are corrected in order, so that each is seen behind corrected ones. Layers left in float are not touched.

    Args:
        model: the float graph.
        quantized: its QDQ form, with nodes of equal names.
        images: uint8 (N, H, W, 3).
        runtime: turns images into the graph's input.

    Raises:
        ExportError: onnxruntime cannot run the graph.
    """
    result = ModelProto()
    result.CopyFrom(model)
    own = biases(result)
    chosen = [node for node in layers.layers(result) if node.name in own and _is_quantized(quantized, node.name)]
    size = images[0, ..., 0].size
    images, batch = images[: max(16, ENOUGH_PIXELS // size)], max(1, BATCH_PIXELS // size)
    batches = [np.ascontiguousarray(images[start : start + batch]) for start in range(0, len(images), batch)]
    floats = [node.output[0] for node in chosen]
    reference = _means(_session(_with_outputs(result, floats)), floats, runtime, batches, {})
    outputs = {node.name: node.output[0] for node in quantized.graph.node}
    names = [node.name for node in chosen]
    session = _session(_with_bias_inputs(quantized, names, [outputs[name] for name in names]))
    values = {f"{node.name}_bias": own[node.name] for node in chosen}
    for node in chosen:
        output = outputs[node.name]
        shift = reference[node.output[0]] - _means(session, [output], runtime, batches, values)[output]
        values[f"{node.name}_bias"] = (values[f"{node.name}_bias"] + shift).astype(np.float32)
    tensors = layers.stored(result)
    for node in chosen:
        name = node.input[2]
        tensors[name].CopyFrom(numpy_helper.from_array(values[f"{node.name}_bias"], name))
    return result


def biases(model: ModelProto) -> dict[str, np.ndarray]:
    """Give each Conv and Gemm a bias (channels,) of its own, in place; return them by the layer's name.

    MatMul has none.
    """
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
    dims = [int(size) for size in weight.dims]
    if node.op_type == "Conv":
        return dims[0]
    if node.op_type == "ConvTranspose":
        return dims[1] * int(attributes.get("group", 1))
    return dims[0] if attributes.get("transB") else dims[1]


def _is_quantized(quantized: ModelProto, name: str) -> bool:
    behind = surgery.producers(quantized.graph)
    node = next((node for node in quantized.graph.node if node.name == name), None)
    return node is not None and node.input[1] in behind and behind[node.input[1]].op_type == "DequantizeLinear"


def _with_outputs(model: ModelProto, names: list[str]) -> ModelProto:
    """Return a copy whose outputs are these tensors."""
    copy = ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    return copy


def _with_bias_inputs(quantized: ModelProto, names: list[str], outputs: list[str]) -> ModelProto:
    """Return the QDQ graph with a float input `<layer>_bias` for each named layer, for a single session."""
    copy = _with_outputs(quantized, outputs)
    for node in copy.graph.node:
        if node.name in names:
            bias = f"{node.name}_bias"
            del node.input[2:]
            node.input.append(bias)
            copy.graph.input.append(helper.make_tensor_value_info(bias, onnx.TensorProto.FLOAT, [None]))
    return copy


def _session(model: ModelProto) -> onnxruntime.InferenceSession:
    options = session_options(1)
    # Without optimisations Q and DQ compute what the graph says, and float layers between them stay visible.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except SESSION_ERRORS as error:
        raise ExportError(f"bias correction: onnxruntime cannot run the graph: {str(error).splitlines()[0]}") from error


def _means(
    session: onnxruntime.InferenceSession,
    outputs: list[str],
    runtime: Model,
    batches: list[np.ndarray],
    values: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Return the mean of each output (N, C, ...) by channel, float64 (C,); only what leads to `outputs` is computed."""
    run_options = onnxruntime.RunOptions()
    run_options.only_execute_path_to_fetches = True
    totals: dict[str, np.ndarray] = {}
    count = 0
    for batch in batches:
        found = session.run(outputs, {**runtime.feed(batch), **values}, run_options)
        for name, value in zip(outputs, found, strict=True):
            by_channel = value.astype(np.float64).mean(axis=tuple(range(2, value.ndim))).sum(axis=0)
            totals[name] = totals.get(name, 0.0) + by_channel
        count += len(batch)
    return {name: total / count for name, total in totals.items()}
