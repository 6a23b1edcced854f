"""ONNX files as they are written: cleaned, reproducible byte for byte, and checked against what every file promises."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import GraphProto, ModelProto, helper

from export.graph.surgery import consumers, producers, replace
from export.runtime import INPUT, OUTPUT, ExportError

MAX_IR = 10
# The IR version that came with each opset (onnx's Versioning.md): the lowest one reaches the oldest runtimes.
_IR_OF_OPSET = {18: 8, 19: 9, 20: 9}

# First release, highest opset, highest IR version. Source: onnxruntime's documentation, "ONNX opset support"; 1.23 is
# from its own error message. Releases between two rows count as the older one.
_RUNTIMES = (
    ((1, 14), 18, 8),
    ((1, 15), 19, 8),
    ((1, 16), 19, 9),
    ((1, 17), 20, 9),
    ((1, 18), 21, 10),
    ((1, 23), 23, 11),
)


def opset_of(model: ModelProto) -> int:
    """Return the version of the default operator set."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def check_runtime(path: Path, min_runtime: str) -> None:
    """Raise ExportError if onnxruntime `min_runtime` ("1.19") is too old to load the file."""
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
            f"{path.name}: opset {opset_of(model)}, IR version {model.ir_version} cannot be loaded by onnxruntime "
            f"{min_runtime}, which reads opset {opset} and IR version {ir_version} at most; lower the opset or raise "
            "min_runtime"
        )


def strip_and_describe(model: ModelProto, metadata: dict[str, str], *, made_by: str) -> None:
    """Keep only what runs, and set the metadata.

    Removes doc strings, source paths, shapes of inner tensors, unread weights and all other metadata.
    """
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
    """Write one file, whole or not at all, and return its bytes; equal models give equal bytes."""
    data: bytes = model.SerializeToString(deterministic=True)
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
    """Yield folders of this machine and source files that the file names anywhere but in the weights."""
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
    """Read a written file back and check what every such file promises. Raises ExportError."""
    model = onnx.load(str(path), load_external_data=False)
    if opset_of(model) != opset:
        raise ExportError(f"{path.name}: the file has opset {opset_of(model)}, opset {opset} was asked for")
    if model.ir_version > MAX_IR:
        raise ExportError(f"{path.name}: IR version {model.ir_version} is above {MAX_IR}")
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise ExportError(f"{path.name}: weights lie outside the file")
    for name in _unfolded_batch_norms(model.graph):
        raise ExportError(
            f"{path.name}: BatchNormalization {name} stands directly behind a convolution instead of being folded into "
            "it"
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
    """Return the number of nodes by operator."""
    return dict(sorted(Counter(node.op_type for node in model.graph.node).items()))
