"""The layers with weights of a float graph: find them by name or place, and keep them in float in any session."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from export.graph import surgery
from export.runtime import ExportError

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_LOWEST = float(np.finfo(np.float32).min)


def layers(model: ModelProto) -> list[NodeProto]:
    """Return the convolutions and matrix products whose weights are stored in the file, in the graph's order."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [node for node in model.graph.node if node.op_type in LAYERS and node.input[1] in weights]


def resolve(model: ModelProto, wanted: Sequence[str]) -> tuple[str, ...]:
    """Return the node names for `first`, `last` and layer names, in the graph's order. Raises ExportError."""
    names = [node.name for node in layers(model)]
    if not names:
        raise ExportError("the network has no convolution and no matrix product")
    places = {"first": names[0], "last": names[-1]}
    chosen = set()
    for word in wanted:
        name = places.get(word, word)
        if name not in names:  # onnxruntime appends what it made of a layer to the layer's name
            name = next((one for one in names if one.startswith(f"{word}/")), name)
        if name not in names:
            close = difflib.get_close_matches(word, names, n=1)
            hint = f"known are first, last, {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
            if close:
                hint = f"did you mean {close[0]!r}?"
            raise ExportError(f"float_layers: the network has no layer {word!r}; {hint}")
        chosen.add(name)
    return tuple(name for name in names if name in chosen)


def keep_in_float(model: ModelProto, names: Sequence[str]) -> tuple[str, ...]:
    """Rewrite what follows each named layer so that it stays in float; return the names of the nodes not to quantise.

    onnxruntime quantises a float layer between DequantizeLinear and QuantizeLinear again when it loads the file, per
    tensor, even through a Relu or Clip behind it (WeightBiasQuantization; on EfficientNet-Lite0 this gives 73.6 % where
    quantising every layer gives 76.8 %). It does not look through Max and Min, which compute the same.
    """
    kept = list(names)
    for name in names:
        readers = surgery.consumers(model.graph)
        node = next(node for node in model.graph.node if node.name == name)
        output = node.output[0]
        behind = readers.get(output, [])
        if not behind:
            continue  # the logits: nobody quantises them
        if len(behind) == 1 and behind[0].op_type in ("Clip", "Relu"):
            kept += _as_max_and_min(model, behind[0])
        else:
            node.output[0] = f"{output}_float"
            steps = [("Max", _constant(model, f"{name}_lowest", _LOWEST))]
            kept += _insert(model, node, steps, f"{output}_float", output)
    return tuple(kept)


def _as_max_and_min(model: ModelProto, activation: NodeProto) -> list[str]:
    """Replace a Relu or Clip by Max and Min."""
    if activation.op_type == "Relu":
        steps = [("Max", _constant(model, f"{activation.name}_zero", 0.0))]
    else:
        bounds = [*activation.input[1:], "", ""][:2]
        steps = [(op, bound) for op, bound in zip(("Max", "Min"), bounds, strict=True) if bound]
    if not steps:  # a Clip without bounds
        steps = [("Max", _constant(model, f"{activation.name}_lowest", _LOWEST))]
    source, target = activation.input[0], activation.output[0]
    names = _insert(model, activation, steps, source, target)
    model.graph.node.remove(activation)
    return names


def _insert(model: ModelProto, after: NodeProto, steps: list[tuple[str, str]], source: str, target: str) -> list[str]:
    """Put a chain of two-input nodes behind a node; return their names."""
    position = list(model.graph.node).index(after) + 1
    names = []
    for number, (op, constant) in enumerate(steps):
        output = target if number == len(steps) - 1 else f"{target}_{op.lower()}"
        made = helper.make_node(op, [source, constant], [output], name=f"{after.name}_{op.lower()}")
        model.graph.node.insert(position + number, made)
        names.append(made.name)
        source = output
    return names


def _constant(model: ModelProto, name: str, value: float) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    return name


def stored(model: ModelProto) -> dict[str, TensorProto]:
    """Return the file's constants by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def with_weights(model: ModelProto, values: Mapping[str, np.ndarray]) -> ModelProto:
    """Return a copy with these float32 arrays in the initializers of their names.

    Raises ExportError for an unknown name or another shape.
    """
    changed = ModelProto()
    changed.CopyFrom(model)
    tensors = stored(changed)
    for name, value in values.items():
        if name not in tensors or tuple(tensors[name].dims) != value.shape:
            raise ExportError(f"the network has no weight {name} of shape {tuple(value.shape)}")
        tensors[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value, dtype=np.float32), name))
    return changed
