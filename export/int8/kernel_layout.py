"""Pad channels so that onnxruntime's fast integer CPU kernels apply; the answers do not change.

Kernels that read a convolution's input in place need input channels in fours, depthwise ones in sixteens; all others
first copy each window (im2col). Measured on AVX512-VNNI at 224 pixels: a stem of 3 channels takes 210 us, laid out as
here 75; 88 depthwise channels at 28 x 28 take 50 us, 96 of them 20. Only products with zero are added. A float session
pads channels by itself, so the float file stays as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from export.graph import float64_reference, surgery
from export.int8 import stem_layout
from export.runtime import Contract, ExportError

# The steps: depthwise convolutions get whole blocks of channels; the stem reads four pixels as one.
DEPTHWISE_BLOCKS, STEM_IN_FOURS = "blocks", "fours"
# Largest difference of the padded graph's logits in float64, as a share of the largest |logit|.
EXACTNESS_LIMIT = 1e-12
CHANNEL_BLOCK = 16
# How many times as many channels a depthwise convolution may get.
MAX_CHANNEL_GROWTH = 2.0
# Operators that treat each channel alone.
UNARY = (
    "Relu",
    "Clip",
    "HardSwish",
    "HardSigmoid",
    "Sigmoid",
    "LeakyRelu",
    "GlobalAveragePool",
    "AveragePool",
    "MaxPool",
)
BINARY = ("Add", "Mul", "Max", "Min")


# The graph's constants by name.
Stored = dict[str, TensorProto]


@dataclass
class _Region:
    """Everything that carries the channels of one feature map.

    `sources` make the channels, `sinks` read them, `inside` are the depthwise convolutions that treat each one alone.
    """

    channels: int
    tensors: set[str] = field(default_factory=set)
    sources: list[NodeProto] = field(default_factory=list)
    inside: list[NodeProto] = field(default_factory=list)
    sinks: list[NodeProto] = field(default_factory=list)
    # Node, and which of its inputs.
    constants: list[tuple[NodeProto, int]] = field(default_factory=list)


def exact_steps(model: ModelProto, contract: Contract, images: np.ndarray) -> tuple[str, ...]:
    """Return the steps that a model can be laid out with: those that run and that make no difference in float64.

    Args:
        model: the float graph.
        contract: of its file.
        images: uint8 (N, H, W, 3). One is enough, because the zeros are the same for all.

    Raises:
        ExportError: the graph cannot be evaluated.
    """
    expected = float64_reference.logits(model, contract, images[:1])
    found: tuple[str, ...] = ()
    for step in (DEPTHWISE_BLOCKS, STEM_IN_FOURS):
        candidate = _copy(model)
        try:
            # A step that changes nothing is not listed. The steps before it are applied, too, because it follows them.
            if apply(candidate, (*found, step))[1] == apply(_copy(model), found)[1]:
                continue
            answers = float64_reference.logits(candidate, contract, images[:1])
        except ExportError:
            continue
        if float(np.abs(answers - expected).max()) <= EXACTNESS_LIMIT * float(np.abs(expected).max()):
            found = (*found, step)
    return found


def apply(model: ModelProto, steps: tuple[str, ...]) -> tuple[dict[str, str], int]:
    """Lay the model out in place.

    Returns its new tensors with the known ones of equal values, and how many layers changed.
    """
    widened = fill_blocks(model) if DEPTHWISE_BLOCKS in steps else 0
    alike = stem_layout.read_pixels_in_fours(model) if STEM_IN_FOURS in steps else {}
    if widened or alike:
        # The shapes are stale, and the quantiser needs one for each tensor.
        surgery.replace(model.graph.value_info, [])
        inferred = onnx.shape_inference.infer_shapes(model)
        model.CopyFrom(inferred)
    return alike, widened + bool(alike)


def _copy(model: ModelProto) -> ModelProto:
    made = ModelProto()
    made.CopyFrom(model)
    return made


def fill_blocks(model: ModelProto) -> int:
    """Give depthwise convolutions whole blocks of channels; return how many.

    The added channels are multiplied by zero behind.
    """
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    read = surgery.consumers(model.graph)
    count = 0
    done: set[str] = set()
    for node in model.graph.node:
        channels = _depthwise(node, stored)
        if not channels or channels % CHANNEL_BLOCK == 0 or node.output[0] in done:
            continue
        region = _region(model, node, channels, stored)
        if region is None:
            continue
        weights = [name for part in (*region.sources, *region.inside, *region.sinks) for name in part.input[1:3]]
        if any(len(read[name]) != 1 for name in weights if name in stored):
            continue
        wanted = math.ceil(channels / CHANNEL_BLOCK) * CHANNEL_BLOCK
        if wanted > MAX_CHANNEL_GROWTH * channels:
            continue
        _widen(model, region, wanted - channels, stored)
        done.update(part.output[0] for part in region.inside)
        count += len(region.inside)
    return count


def _depthwise(node: NodeProto, stored: Stored) -> int:
    """Return the channels of a depthwise convolution; 0 for anything else."""
    if node.op_type != "Conv" or node.input[1] not in stored:
        return 0
    groups: int = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    dims = stored[node.input[1]].dims
    return groups if groups > 1 and dims[0] == groups and dims[1] == 1 else 0


def _region(model: ModelProto, start: NodeProto, channels: int, stored: Stored) -> _Region | None:
    """Return the region around a depthwise convolution, or None if something in it ties channels together."""
    behind, readers = surgery.producers(model.graph), surgery.consumers(model.graph)
    outputs = {value.name for value in model.graph.output}
    region, waiting = _Region(channels), [start.input[0], start.output[0]]
    seen: set[tuple[str, bool]] = set()
    while waiting:
        tensor = waiting.pop()
        if tensor in region.tensors:
            continue
        if tensor not in behind or tensor in outputs:
            return None
        region.tensors.add(tensor)
        for node in (behind[tensor], *readers.get(tensor, [])):
            # Not the node's name, which parts of an inlined function lack; and a layer may be source and sink.
            end = node.output[0], tensor in node.input
            if end in seen:
                continue
            more = _join(region, node, tensor, stored, known=(end[0], not end[1]) in seen)
            if more is None:
                return None
            seen.add(end)
            waiting += more
    return region


def _join(region: _Region, node: NodeProto, tensor: str, stored: Stored, *, known: bool) -> list[str] | None:
    """Add a node that makes or reads `tensor` to the region.

    Returns the tensors that carry the channels on, or None if the node cannot be widened. `known`: the node was already
    met at its other end, so that only sources and sinks are added.
    """
    if node.op_type == "Conv":
        if node.input[1] not in stored or tensor in node.input[1:]:
            return None
        if _depthwise(node, stored) == region.channels:
            region.inside += [] if known else [node]
            return [node.input[0], node.output[0]]
        if any(attribute.name == "group" and attribute.i != 1 for attribute in node.attribute):
            return None
        (region.sources if tensor in node.output else region.sinks).append(node)
        return []
    if node.op_type in UNARY:
        return [node.input[0], node.output[0]] if all(name in stored or not name for name in node.input[1:]) else None
    if node.op_type not in BINARY:
        return None
    if known:
        return []
    carried = [node.output[0]]
    for place, name in enumerate(node.input):
        if name not in stored:
            carried.append(name)
        elif math.prod(stored[name].dims) != 1:
            if list(stored[name].dims) not in ([1, region.channels, 1, 1], [region.channels, 1, 1]):
                return None
            region.constants.append((node, place))
    return carried


def _widen(model: ModelProto, region: _Region, more: int, stored: Stored) -> None:
    """Add zeros: rows and biases of sources and depthwise convolutions, columns of sinks, constants."""
    for node in (*region.sources, *region.inside):
        for name in (name for name in node.input[1:3] if name):
            _pad(stored[name], 0, more)
        for attribute in node.attribute:
            if attribute.name == "group" and node in region.inside:
                attribute.i = region.channels + more
    for node in region.sinks:
        _pad(stored[node.input[1]], 1, more)
    # Constants get a copy, because other regions may read them, too.
    for node, place in region.constants:
        own = model.graph.initializer.add()
        own.CopyFrom(stored[node.input[place]])
        own.name = f"{node.output[0]}_wide"
        _pad(own, len(own.dims) - 3, more)
        node.input[place] = own.name


def _pad(tensor: TensorProto, axis: int, more: int) -> None:
    value = numpy_helper.to_array(tensor)
    widths = [(0, more if place == axis else 0) for place in range(value.ndim)]
    tensor.CopyFrom(numpy_helper.from_array(np.pad(value, widths), tensor.name))
