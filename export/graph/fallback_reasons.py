"""Why a node of an int8 file runs in float, from the file's graph and the one that onnxruntime executes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence

from onnx import GraphProto, NodeProto, TensorProto

from export.graph import surgery

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Operators for which onnxruntime's CPU provider has an integer kernel, or which it runs on integers as they are.
SUPPORTED = frozenset(
    "Conv ConvTranspose Gemm MatMul Add Mul Sigmoid LeakyRelu AveragePool GlobalAveragePool Softmax Concat Where Relu "
    "Clip MaxPool ArgMax Transpose Reshape Flatten Squeeze Unsqueeze Split Slice Pad Resize Gather".split()
)
REWRITES = {
    "ReduceMean": "rewrite the mean over height and width to GlobalAveragePool, which has one",
    "HardSigmoid": "rewrite it to Mul, Add and Clip, which have",
    "HardSwish": "rewrite it to Mul, Add and Clip, which have",
}
RECIPE = "kept in float by the recipe (float_layers)"
FLOAT_FILE = "the file is a float file"
UNQUANTISED = "what it reads or computes is not quantised in the file"
S8_ON_X86 = (
    "int8 activations on x86: kernels there take uint8, and onnxruntime converts only tensors with a single reader "
    "(not a residual's); build the file for this instruction set"
)


def explain(
    islands: Sequence[tuple[str, str]], written: GraphProto, executed: GraphProto, *, kept: Collection[str], x86: bool
) -> dict[str, str]:
    """Return a sentence part for each float node.

    Args:
        islands: (node, op) that run in float.
        written: the file's graph.
        executed: the graph that onnxruntime executes.
        kept: layers that the recipe keeps in float.
        x86: whether this machine is an x86.
    """
    file = _File(written)
    if not file.quantized:
        return {name: FLOAT_FILE for name, _ in islands}
    causes = {name: cause for name, op in islands if (cause := _own_cause(file, name, op, kept, x86))}
    names = [name for name, _ in islands]
    # A node without a cause of its own is float because its neighbour is, so causes spread to neighbours.
    beside = _neighbours(executed, set(names))
    while missing := [name for name in names if name not in causes]:
        found = {name: causes[other] for name in missing for other in beside[name] if other in causes}
        if not found:
            rest = S8_ON_X86 if x86 and file.int8_activations else UNQUANTISED
            return {**causes, **dict.fromkeys(missing, rest)}
        causes.update(found)
    return causes


def requantised(written: GraphProto, kernels: Iterable[tuple[str, str]], integer: Collection[str]) -> tuple[str, ...]:
    """Return layers with float weights in the file whose kernel (name, op) is an integer one.

    onnxruntime's WeightBiasQuantization quantises them again.
    """
    file = _File(written)
    ran = {node.name for name, op in kernels if op in integer and (node := file.origin(name, op)) is not None}
    return tuple(
        node.name
        for node in written.node
        if node.op_type in LAYERS and node.name in ran and file.has_float_weights(node)
    )


class _File:
    """Lookups in the graph as it is written."""

    def __init__(self, written: GraphProto) -> None:
        self.nodes = {node.name: node for node in written.node}
        self.behind = surgery.producers(written)
        self.readers = surgery.consumers(written)
        self.stored = {tensor.name: tensor for tensor in written.initializer}
        self.quantized = any(node.op_type == "QuantizeLinear" for node in written.node)
        self.int8_activations = any(
            node.op_type == "QuantizeLinear" and len(node.input) > 2 and self._type(node.input[2]) == TensorProto.INT8
            for node in written.node
        )

        self._aliases = {output: node for node in written.node for output in node.output} | self.nodes

    def origin(self, name: str, op: str) -> NodeProto | None:
        """Return the file's node behind an executed one.

        Fusions append `_token_7`, and the blocked layout names a node after its output.
        """
        bare = re.sub(r"(_token_\d+|_nhwc|_nchwc)+$", "", name)
        node = self._aliases.get(name) or self._aliases.get(bare)
        if node is not None and node.op_type in ("Clip", "Relu") and op not in ("Clip", "Relu"):
            return self.behind.get(node.input[0])  # fused into the layer in front of it
        return node

    def _type(self, name: str) -> int:
        return self.stored[name].data_type if name in self.stored else TensorProto.UNDEFINED

    def has_float_weights(self, node: NodeProto) -> bool:
        return self._type(node.input[1]) in (TensorProto.FLOAT, TensorProto.FLOAT16)

    def source(self, name: str) -> NodeProto | None:
        """Return the node that computes a tensor."""
        return self.behind.get(name)

    def is_read_by(self, name: str, op: str) -> bool:
        return any(node.op_type == op for node in self.readers.get(name, []))


def _own_cause(file: _File, name: str, op: str, kept: Collection[str], x86: bool) -> str | None:
    node = file.origin(name, op)
    if node is not None and node.op_type in LAYERS:
        return _layer_cause(file, node, kept, x86)
    if op in SUPPORTED or op.startswith("Reorder") or (op in ("Max", "Min") and kept):
        return None  # float because of a neighbour
    hint = f"; {REWRITES[op]}" if op in REWRITES else ""
    return f"onnxruntime has no int8 kernel for {op}{hint}"


def _layer_cause(file: _File, node: NodeProto, kept: Collection[str], x86: bool) -> str:
    if node.name in kept:
        return RECIPE
    if file.has_float_weights(node):
        return "its weights are float in the file"
    reads = file.source(node.input[0])
    if reads is None or reads.op_type != "DequantizeLinear":
        source = reads.op_type if reads is not None else "the input"
        return f"what it reads is not quantised in the file ({source} in front of it)"
    if x86 and file.int8_activations:
        return S8_ON_X86
    if not _answers_in_integers(file, node):
        return "what it computes is not quantised in the file"
    return "onnxruntime found no integer kernel for it here"


def _answers_in_integers(file: _File, node: NodeProto) -> bool:
    """Return whether QuantizeLinear stands behind a layer, directly or behind its Clip or Relu."""
    output = node.output[0]
    readers = file.readers.get(output, [])
    if len(readers) == 1 and readers[0].op_type in ("Clip", "Relu"):
        output = readers[0].output[0]
    return file.is_read_by(output, "QuantizeLinear")


def _neighbours(executed: GraphProto, islands: Collection[str]) -> dict[str, list[str]]:
    """Return each island's neighbouring islands, with no quantised tensor in between; those in front of it first."""
    behind, readers = surgery.producers(executed), surgery.consumers(executed)

    def around(node: NodeProto) -> Iterator[str]:
        for name in node.input:
            if name in behind:
                yield behind[name].name
        for name in node.output:
            yield from (reader.name for reader in readers.get(name, []))

    found = {
        node.name: [other for other in around(node) if other in islands]
        for node in executed.node
        if node.name in islands
    }
    return {name: found.get(name, []) for name in islands}
