"""Operations on ONNX graphs: who makes and reads a tensor, and changes that keep the answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from export.runtime import INPUT, OUTPUT


def producers(graph: GraphProto) -> dict[str, NodeProto]:
    """Return the node that makes each tensor."""
    return {name: node for node in graph.node for name in node.output}


def consumers(graph: GraphProto) -> dict[str, list[NodeProto]]:
    """Return the nodes that read each tensor."""
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return readers


def _normalisation(graph: GraphProto) -> list[NodeProto]:
    """Return the nodes that make normalised pixels (N, 3, H, W) of a uint8 input; none if the file takes floats."""
    chain, name = [], INPUT
    for op in ("Transpose", "Cast", "Mul", "Add"):
        readers = consumers(graph).get(name, [])
        if len(readers) != 1 or readers[0].op_type != op:
            return []
        chain.append(readers[0])
        name = readers[0].output[0]
    return chain


def normalised_pixels(graph: GraphProto) -> str:
    """Return the name of the tensor that holds the normalised pixels (N, 3, H, W)."""
    chain = _normalisation(graph)
    return chain[-1].output[0] if chain else INPUT


def normalise_by_rows(model: ModelProto, channels: int = 3) -> int:
    """Make a file that takes uint8 (N, H, W, 3) normalise whole rows before it transposes; return 1 if it was done.

    The products and sums are the same, with constants as long as a row. Integer convolutions have their channels last,
    so onnxruntime moves the transposition behind the normalisation and then multiplies three values at a time: a third
    of MobileNetV3's time at 224 x 224. The pixels come out as (N, channels, H, 3 W / channels): with more than 3
    channels, several pixels of a row lie beside each other.
    """
    graph = model.graph
    chain = _normalisation(graph)
    if not chain:
        return 0
    name = chain[-1].output[0]
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    values = [
        constants.get(next(part for part in node.input if part not in chain[place + 1].output))
        for place, node in enumerate(chain[2:])
    ]
    height, width = (dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim[1:3])
    known = [value for value in values if value is not None and value.shape == (1, 3, 1, 1)]
    if len(known) != 2:
        return 0
    shapes = {"pixel_rows": [0, height, 3 * width], "pixel_columns": [0, height, 3 * width // channels, channels]}
    arrays = {key: np.array(shape, np.int64) for key, shape in shapes.items()}
    arrays.update(zip(("row_scale", "row_shift"), (np.tile(value.ravel(), width) for value in known), strict=True))
    graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in arrays.items())
    nodes = [
        # Cast first: reshaping the input would copy it, reshaping what a node made does not.
        helper.make_node("Cast", [INPUT], ["float_pixels"], name="float_pixels", to=onnx.TensorProto.FLOAT),
        helper.make_node("Reshape", ["float_pixels", "pixel_rows"], ["float_rows"], name="float_rows"),
        helper.make_node("Mul", ["float_rows", "row_scale"], ["scaled_rows"], name="scaled_rows"),
        helper.make_node("Add", ["scaled_rows", "row_shift"], ["normalised_rows"], name="normalised_rows"),
        helper.make_node(
            "Reshape", ["normalised_rows", "pixel_columns"], ["normalised_pixels"], name="normalised_pixels"
        ),
        helper.make_node("Transpose", ["normalised_pixels"], [name], name="channels_first", perm=[0, 3, 1, 2]),
    ]
    replace(graph.node, nodes + [node for node in graph.node if node not in chain])
    return 1


def absorb_scalar_products(model: ModelProto) -> int:
    """Drop products of a quantised tensor with a positive scalar from a QDQ graph; return how many.

    c * scale * (q - zero_point) has the same integers under another scale, so no kernel needs to compute it.
    """
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    behind, readers = producers(graph), consumers(graph)
    count = 0
    for node in [node for node in graph.node if node.op_type == "Mul" and node.output[0] != OUTPUT]:
        for tensor, scalar in (node.input, reversed(node.input)):
            source, factor = behind.get(tensor), _scalar(scalar, constants, behind)
            reading = readers.get(node.output[0], [])
            if factor is None or factor <= 0 or source is None or source.op_type != "DequantizeLinear":
                continue
            if len(reading) != 1 or reading[0].op_type != "QuantizeLinear":
                continue
            if source.input[0] in constants or constants[source.input[1]].size != 1:
                continue
            scale = f"{node.output[0]}_absorbed_scale"
            value = (constants[source.input[1]] * factor).astype(np.float32)
            graph.initializer.append(numpy_helper.from_array(value, scale))
            for reader in readers[reading[0].output[0]]:
                reader.input[0], reader.input[1], reader.input[2] = source.input[0], scale, source.input[2]
            count += 1
            break
    prune(graph)
    return count


def _scalar(name: str, constants: dict[str, np.ndarray], behind: dict[str, NodeProto]) -> float | None:
    """Return the value of a constant with one element, stored as it is or as an integer behind DequantizeLinear."""
    if name in constants:
        return float(constants[name].item()) if constants[name].size == 1 else None
    node = behind.get(name)
    if (
        node is None
        or node.op_type != "DequantizeLinear"
        or any(part not in constants or constants[part].size != 1 for part in node.input)
    ):
        return None
    value, scale, zero_point = (float(constants[part].item()) for part in node.input)
    return (value - zero_point) * scale


def prune(graph: GraphProto) -> None:
    """Remove nodes that nothing reads."""
    while True:
        read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
        kept = [node for node in graph.node if read.intersection(node.output)]
        if len(kept) == len(graph.node):
            return
        replace(graph.node, kept)


def ranks_of(model: ModelProto) -> dict[str, int]:
    """Return the number of axes of each tensor whose shape is known."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = [*graph.value_info, *graph.input, *graph.output]
    return {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in values
        if value.type.tensor_type.HasField("shape")
    }


def replace(field: Any, values: list[Any]) -> None:
    """Replace the content of a repeated field by `values`."""
    # Copies, because deleting would clear the originals.
    kept = [type(value).FromString(value.SerializeToString()) for value in values]
    del field[:]
    field.extend(kept)
