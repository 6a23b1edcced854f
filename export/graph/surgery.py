"""What is done to an ONNX graph whatever wrote it: cleaning, checks, and bytes that depend on nothing else."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from export.runtime import INPUT, OUTPUT, ExportError

MAX_IR = 10
# The IR version that came with each opset (onnx's Versioning.md): the lowest one reaches the oldest runtimes.
_IR_OF_OPSET = {18: 8, 19: 9, 20: 9}

# onnxruntime's compatibility table (its documentation, "ONNX opset support"): first release, highest opset, highest IR version.
# 1.23 is not in the table read; its own error message names IR 11, with opset 23. Releases between two rows count as the older one.
_RUNTIMES = (
    ((1, 14), 18, 8),
    ((1, 15), 19, 8),
    ((1, 16), 19, 9),
    ((1, 17), 20, 9),
    ((1, 18), 21, 10),
    ((1, 23), 23, 11),
)


def opset_of(model: ModelProto) -> int:
    """The version of the default operator set."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def check_runtime(path: Path, min_runtime: str) -> None:
    """Raise ExportError where onnxruntime `min_runtime` ("1.19") is too old to load the file."""
    match = re.match(r"(\d+)\.(\d+)", min_runtime)
    if not match:
        raise ExportError(f"min_runtime {min_runtime!r} is not a version such as 1.19")
    version = (int(match.group(1)), int(match.group(2)))
    rows = [row for row in _RUNTIMES if row[0] <= version]
    if not rows:
        raise ExportError(f"min_runtime {min_runtime} is older than 1.14, the first onnxruntime that loads opset 18")
    _, opset, ir_version = rows[-1]
    model = onnx.load(str(path), load_external_data=False)
    if opset_of(model) > opset or model.ir_version > ir_version:
        raise ExportError(
            f"{path.name}: opset {opset_of(model)}, IR version {model.ir_version} cannot be loaded by onnxruntime {min_runtime}, "
            f"which reads opset {opset} and IR version {ir_version} at most; lower the opset or raise min_runtime"
        )


def producers(graph: GraphProto) -> dict[str, NodeProto]:
    """The node behind each tensor."""
    return {name: node for node in graph.node for name in node.output}


def consumers(graph: GraphProto) -> dict[str, list[NodeProto]]:
    """The nodes that read each tensor."""
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return readers


def _normalisation(graph: GraphProto) -> list[NodeProto]:
    """The nodes that make normalised pixels (N, 3, H, W) of a file's uint8 input; none where it takes floats."""
    chain, name = [], INPUT
    for op in ("Transpose", "Cast", "Mul", "Add"):
        readers = consumers(graph).get(name, [])
        if len(readers) != 1 or readers[0].op_type != op:
            return []
        chain.append(readers[0])
        name = readers[0].output[0]
    return chain


def normalised_pixels(graph: GraphProto) -> str:
    """The name of the tensor that holds the normalised pixels (N, 3, H, W)."""
    chain = _normalisation(graph)
    return chain[-1].output[0] if chain else INPUT


def normalise_by_rows(model: ModelProto, channels: int = 3) -> int:
    """Let a file that takes uint8 (N, H, W, 3) normalise before it transposes, with constants as long as a row; returns 1 where it was done.

    The same products and sums. Integer convolutions have their channels last, so onnxruntime moves the transposition behind the
    normalisation, and then multiplies three values at a time: a third of MobileNetV3's time at 224 x 224. The pixels come out as
    (N, channels, H, 3 W / channels): with more than 3 channels, several pixels of a row beside each other.
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
        # Cast first: a reshaped input would be copied, what a node made is not.
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
    """Drop products of a quantised tensor with a positive scalar from a QDQ graph; returns how many.

    c * scale * (q - zero_point): the product has the same integers under another scale, so that no kernel needs to compute it.
    """
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    behind, readers = producers(graph), consumers(graph)
    count = 0
    for node in [node for node in graph.node if node.op_type == "Mul" and node.output[0] != OUTPUT]:
        for tensor, scalar in (node.input, reversed(node.input)):
            source, factor = behind.get(tensor), _scalar(scalar, constants, behind)
            reading = readers.get(node.output[0], [])
            if (
                factor is None
                or factor <= 0
                or source is None
                or len(reading) != 1
                or reading[0].op_type != "QuantizeLinear"
            ):
                continue
            if (
                source.op_type != "DequantizeLinear"
                or source.input[0] in constants
                or constants[source.input[1]].size != 1
            ):
                continue
            scale = f"{node.output[0]}_absorbed_scale"
            graph.initializer.append(
                numpy_helper.from_array((constants[source.input[1]] * factor).astype(np.float32), scale)
            )
            for reader in readers[reading[0].output[0]]:
                reader.input[0], reader.input[1], reader.input[2] = source.input[0], scale, source.input[2]
            count += 1
            break
    prune(graph)
    return count


def _scalar(name: str, constants: dict[str, np.ndarray], behind: dict[str, NodeProto]) -> float | None:
    """The value of a constant with one element, stored as it is or as an integer behind DequantizeLinear."""
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
    """Number of axes of each tensor whose shape is known."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = [*graph.value_info, *graph.input, *graph.output]
    return {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in values
        if value.type.tensor_type.HasField("shape")
    }


def replace(field: object, values: list) -> None:
    """The content of a repeated field becomes `values`."""
    kept = [
        type(value).FromString(value.SerializeToString()) for value in values
    ]  # copies: deleting would clear the originals
    del field[:]  # type: ignore[attr-defined]
    field.extend(kept)  # type: ignore[attr-defined]


def clean(model: ModelProto, metadata: dict[str, str], *, made_by: str) -> None:
    """Keep only what runs: no doc strings, source paths, shapes of inner tensors or unread weights; the metadata becomes ours."""
    graph = model.graph
    name, _, version = made_by.rpartition(" ")
    model.producer_name, model.producer_version = (name, version) if name else (version, "")
    model.ir_version = _IR_OF_OPSET.get(opset_of(model), MAX_IR)
    model.model_version = 0
    graph.name = OUTPUT
    for message in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *model.functions):
        if message.HasField("doc_string"):
            message.ClearField("doc_string")
    model.ClearField("domain")
    del model.metadata_props[:], graph.metadata_props[:], graph.value_info[:], graph.quantization_annotation[:]
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        del part.metadata_props[:]
    read = {tensor for node in graph.node for tensor in node.input} | {value.name for value in graph.output}
    replace(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in read])
    domains = {node.domain for node in graph.node} | {"", *(function.domain for function in model.functions)}
    replace(model.opset_import, [entry for entry in model.opset_import if entry.domain in domains])
    helper.set_model_props(model, dict(sorted(metadata.items())))


def save(model: ModelProto, path: Path) -> bytes:
    """Write one file, whole or not at all; equal models give equal bytes."""
    data = model.SerializeToString(deterministic=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    os.replace(partial, path)
    return data


def _unfolded_batch_norms(graph: GraphProto) -> Iterator[str]:
    behind = producers(graph)
    readers = consumers(graph)
    for node in graph.node:
        if node.op_type != "BatchNormalization" or node.input[0] not in behind:
            continue
        if behind[node.input[0]].op_type == "Conv" and len(readers[node.input[0]]) == 1:
            yield node.name


def _machine_paths(model: ModelProto) -> Iterator[str]:
    """Folders of this machine and source files named anywhere but in the weights, where five bytes may meet by chance."""
    bare = ModelProto()
    bare.CopyFrom(model)
    for tensor in bare.graph.initializer:
        tensor.ClearField("raw_data")
    data = bare.SerializeToString()
    folders = {
        str(Path.home()),
        str(Path.cwd()),
        sys.prefix,
        tempfile.gettempdir(),
        str(Path(__file__).resolve().parents[2]),
    }
    for folder in sorted(folders):
        if folder != os.sep and (folder.rstrip(os.sep) + os.sep).encode() in data:
            yield folder
    for match in re.finditer(rb"(?:[A-Za-z]:\\|/)(?:[\w.@-]+[/\\]){1,}[\w.@-]+\.py\b|site-packages", data):
        yield match.group().decode("latin-1")


def check(path: Path, *, opset: int) -> ModelProto:
    """Read a shipped file back and hold it against what every shipped file promises. Raises ExportError."""
    model = onnx.load(str(path), load_external_data=False)
    if opset_of(model) != opset:
        raise ExportError(f"{path.name}: the file has opset {opset_of(model)}, opset {opset} was asked for")
    if model.ir_version > MAX_IR:
        raise ExportError(f"{path.name}: IR version {model.ir_version} is above {MAX_IR}")
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise ExportError(f"{path.name}: weights lie outside the file")
    for name in _unfolded_batch_norms(model.graph):
        raise ExportError(
            f"{path.name}: BatchNormalization {name} stands directly behind a convolution instead of being folded into it"
        )
    for text in _machine_paths(model):
        raise ExportError(f"{path.name}: the file names a path of the build machine ({text})")
    names = [value.name for value in model.graph.input], [value.name for value in model.graph.output]
    if names != ([INPUT], [OUTPUT]):
        raise ExportError(f"{path.name}: inputs {names[0]} and outputs {names[1]} instead of {INPUT!r} and {OUTPUT!r}")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{path.name}: not a valid ONNX file: {str(error).splitlines()[0]}") from error
    return model


def op_counts(model: ModelProto) -> dict[str, int]:
    """Number of nodes by operator."""
    return dict(sorted(Counter(node.op_type for node in model.graph.node).items()))
