"""What is done to an ONNX graph whatever wrote it: cleaning, exact rewrites, checks, and bytes that depend on nothing else."""

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
_RUNTIMES = (((1, 14), 18, 8), ((1, 15), 19, 8), ((1, 16), 19, 9), ((1, 17), 20, 9), ((1, 18), 21, 10), ((1, 23), 23, 11))


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


def _averages_height_and_width(node: NodeProto, constants: dict[str, np.ndarray]) -> bool:
    if node.op_type != "ReduceMean" or len(node.input) != 2 or node.input[1] not in constants:
        return False
    axes = sorted(int(axis) for axis in constants[node.input[1]].ravel())
    return axes in ([2, 3], [-2, -1])


def pool_means(model: ModelProto, ranks: dict[str, int]) -> int:
    """Replace ReduceMean over height and width of a rank-4 tensor by GlobalAveragePool (and Flatten); returns how many.

    Exact in float; onnxruntime has an int8 kernel for the pool and none for the mean.
    """
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes: list[NodeProto] = []
    count = 0
    for node in model.graph.node:
        if not _averages_height_and_width(node, constants) or ranks.get(node.input[0]) != 4:
            nodes.append(node)
            continue
        keeps = next((attribute.i for attribute in node.attribute if attribute.name == "keepdims"), 1)
        pooled = node.output[0] if keeps else f"{node.output[0]}_pooled"
        nodes.append(helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=f"{node.name}_pool"))
        if not keeps:
            nodes.append(helper.make_node("Flatten", [pooled], [node.output[0]], name=f"{node.name}_flatten", axis=1))
        count += 1
    _replace(model.graph.node, nodes)
    return count


def ranks_of(model: ModelProto) -> dict[str, int]:
    """Number of axes of each tensor whose shape is known."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = [*graph.value_info, *graph.input, *graph.output]
    return {value.name: len(value.type.tensor_type.shape.dim) for value in values if value.type.tensor_type.HasField("shape")}


def _replace(field: object, values: list) -> None:
    kept = [type(value).FromString(value.SerializeToString()) for value in values]  # copies: deleting would clear the originals
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
    _replace(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in read])
    domains = {node.domain for node in graph.node} | {"", *(function.domain for function in model.functions)}
    _replace(model.opset_import, [entry for entry in model.opset_import if entry.domain in domains])
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
    folders = {str(Path.home()), str(Path.cwd()), sys.prefix, tempfile.gettempdir(), str(Path(__file__).resolve().parent.parent)}
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
        raise ExportError(f"{path.name}: BatchNormalization {name} stands directly behind a convolution instead of being folded into it")
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
