"""What onnxruntime really executes: the optimised graph of a default session, not the graph in the file.

A layer that stands between DequantizeLinear and QuantizeLinear in the file may run in float, and a layer that was left
in float may be quantised again when the session is made. See `export.graph.fallback_reasons` for why a node runs in
float.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import GraphProto, NodeProto

from export.graph import fallback_reasons, surgery
from export.runtime import METADATA_PREFIX, SESSION_ERRORS, ExportError, Model, isa, runs_on, session_options

# Metadata key: names of the layers that the recipe keeps in float.
FLOAT_LAYERS_METADATA = METADATA_PREFIX + "float_layers"

# By operator, which of its inputs holds the weights.
CONVOLUTIONS = {"Conv": 1, "FusedConv": 1, "NhwcFusedConv": 1, "ConvTranspose": 1, "QLinearConv": 3, "ConvInteger": 1}
INTEGER_PRODUCTS = ("QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul")
PRODUCTS = ("Gemm", "FusedGemm", "MatMul", "FusedMatMul", *INTEGER_PRODUCTS)
INTEGER = ("QLinearConv", "ConvInteger", *INTEGER_PRODUCTS)


@dataclass(frozen=True)
class Audit:
    """What a file executes on this machine.

    Attributes:
        int8_mac_share: share of `macs` that integer kernels compute, in [0, 1].
        macs: multiply-accumulates of one image, products with the zeros of `export.int8.kernel_layout` included.
        executed: number of kernels by operator.
        islands: (node, op) that compute in float behind the first layer.
        onnxruntime: its version.
        representative: False if the file was built for another instruction set, whose kernels this machine lacks.
        causes: why each island is float, by its node.
        requantised: layers with float weights in the file that run in integers all the same.
    """

    int8_mac_share: float
    macs: int
    executed: dict[str, int]
    islands: tuple[tuple[str, str], ...]
    onnxruntime: str
    representative: bool
    causes: dict[str, str] = field(default_factory=dict)
    requantised: tuple[str, ...] = ()

    def causes_counted(self) -> list[dict[str, Any]]:
        """Return the islands by operator and cause, the most frequent first: [{"op", "cause", "count", "nodes"}]."""
        groups: dict[tuple[str, str], list[str]] = {}
        for name, op in self.islands:
            groups.setdefault((op, self.causes[name]), []).append(name)
        rows = [
            {"op": op, "cause": cause, "count": len(nodes), "nodes": nodes} for (op, cause), nodes in groups.items()
        ]
        return sorted(rows, key=lambda row: -row["count"])


@dataclass(frozen=True)
class _Kernel:
    """One node as it ran; its tensors are (type, shape), as the profiler records them."""

    name: str
    op: str
    inputs: tuple[tuple[str, tuple[int, ...]], ...]
    outputs: tuple[tuple[str, tuple[int, ...]], ...]


def audit(path: Path, *, threads: int = 1) -> Audit:
    """Run one image through a default session and attribute its multiply-accumulates. Raises ExportError."""
    model = Model.load(path, threads)
    feed = model.feed(np.zeros((1, model.contract.image_size, model.contract.image_size, 3), dtype=np.uint8))
    off = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    declared, written = _profile(path, feed, threads, off)
    kernels, optimised = _profile(path, feed, threads, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)
    # The total comes from the file as written: float kernels of the optimised graph pad their channels to whole blocks.
    total = sum(count for _, count in _macs(declared, written))
    integer = sum(count for kernel, count in _macs(kernels, optimised) if kernel.op in INTEGER)
    if total == 0:
        raise ExportError(f"{path}: no convolution or matrix product to audit")
    executed = dict(sorted(Counter(kernel.op for kernel in kernels).items()))
    islands = tuple(_islands(kernels, optimised))
    kept = json.loads(model.session.get_modelmeta().custom_metadata_map.get(FLOAT_LAYERS_METADATA, "[]"))
    causes = fallback_reasons.explain(islands, written, optimised, kept=frozenset(kept), x86=isa().startswith("x86"))
    again = fallback_reasons.requantised(written, [(kernel.name, kernel.op) for kernel in kernels], INTEGER)
    return Audit(
        int8_mac_share=integer / total,
        macs=total,
        executed=executed,
        islands=islands,
        onnxruntime=onnxruntime.__version__,
        representative=runs_on(model.target, isa()),
        causes=causes,
        requantised=again,
    )


def _profile(
    path: Path, feed: dict[str, np.ndarray], threads: int, level: onnxruntime.GraphOptimizationLevel
) -> tuple[list[_Kernel], GraphProto]:
    """Return the kernels of one run in their order, and the graph that they belong to."""
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(threads)
        options.graph_optimization_level = level
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            session.run(None, feed)
        except SESSION_ERRORS as error:
            raise ExportError(f"{path}: onnxruntime cannot run this file: {str(error).splitlines()[0]}") from error
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        optimised = onnx.load(options.optimized_model_filepath)
    suffix = "_kernel_time"
    ran = [event for event in events if event.get("cat") == "Node" and event["name"].endswith(suffix)]
    return [_kernel(event["name"][: -len(suffix)], event["args"]) for event in ran], optimised.graph


def _kernel(name: str, facts: dict[str, Any]) -> _Kernel:
    return _Kernel(name, facts["op_name"], _tensors(facts["input_type_shape"]), _tensors(facts["output_type_shape"]))


def _tensors(described: list[dict[str, Any]]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((kind, tuple(shape)) for entry in described for kind, shape in entry.items())


def _macs(kernels: list[_Kernel], optimised: GraphProto) -> Iterator[tuple[_Kernel, int]]:
    """Yield every convolution and matrix product with its multiply-accumulates."""
    nodes = {node.name: node for node in optimised.node}
    weights = _weight_shapes(optimised)
    for kernel in kernels:
        if kernel.op in CONVOLUTIONS:
            shape = weights.get(nodes[kernel.name].input[CONVOLUTIONS[kernel.op]])
            if shape is None:
                raise ExportError(
                    f"{kernel.name}: the weights of this convolution are computed, which is not supported"
                )
            positions = kernel.inputs if kernel.op == "ConvTranspose" else kernel.outputs
            yield kernel, math.prod(positions[0][1]) * math.prod(shape[1:])
        elif kernel.op in PRODUCTS:
            yield kernel, math.prod(kernel.outputs[0][1]) * kernel.inputs[0][1][-1]


def _weight_shapes(optimised: GraphProto) -> dict[str, tuple[int, ...]]:
    """Return the shapes of weights, stored as they are or as integers behind DequantizeLinear."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in optimised.initializer}
    for node in optimised.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in shapes:
            shapes[node.output[0]] = shapes[node.input[0]]
    return shapes


def _islands(kernels: list[_Kernel], optimised: GraphProto) -> Iterator[tuple[str, str]]:
    behind_first = _behind_first_layer(optimised)
    named = {node.name for node in optimised.node}
    begun = False
    for kernel in kernels:
        computes_float = kernel.outputs and kernel.outputs[0][0] in ("float", "float16")
        begun = begun or kernel.op in CONVOLUTIONS or kernel.op in PRODUCTS
        # Parts of an inlined function (HardSwish) have no name in the graph; the profiler makes one up. What runs
        # before the first layer prepares pixels.
        behind = kernel.name in behind_first or (begun and kernel.name not in named)
        if computes_float and behind and kernel.op not in (*INTEGER, "QuantizeLinear", "DequantizeLinear"):
            yield kernel.name, kernel.op


def _behind_first_layer(optimised: GraphProto) -> set[str]:
    """Return the names of the layers with weights and of all nodes behind them; the rest prepares pixels."""
    touched: set[str] = set()
    names: set[str] = set()
    for node in _in_order(optimised):
        if node.op_type in CONVOLUTIONS or node.op_type in PRODUCTS or touched.intersection(node.input):
            touched.update(node.output)
            names.add(node.name)
    return names


def _in_order(optimised: GraphProto) -> list[NodeProto]:
    """Return the nodes so that each follows those that it reads; saved optimised graphs are not always sorted."""
    made_by = surgery.producers(optimised)
    ordered: list[NodeProto] = []
    seen: set[int] = set()

    def visit(node: NodeProto) -> None:
        stack = [(node, iter(node.input))]
        seen.add(id(node))
        while stack:
            current, inputs = stack[-1]
            above = next((made_by[name] for name in inputs if name in made_by and id(made_by[name]) not in seen), None)
            if above is None:
                ordered.append(stack.pop()[0])
            else:
                seen.add(id(above))
                stack.append((above, iter(above.input)))

    nodes = list(optimised.node)
    for node in nodes:
        if id(node) not in seen:
            visit(node)
    return ordered
