"""What a network must look like for the fast integer kernels of onnxruntime's CPU provider: the same function, its channels in whole blocks.

Kernels that read a convolution's input in place want input channels in fours, depthwise ones in sixteens; everything else first copies
each window (im2col). Measured on AVX512-VNNI, 224 pixels: a stem of 3 channels 210 us, as below 75; 88 depthwise channels at 28 x 28 50 us, 96 of them 20.
Only products with zero are added. A float session pads channels by itself, so the float file stays as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

from export.graph import float64_reference, surgery
from export.runtime import INPUT, Contract, ExportError

BLOCKS, FOURS = "blocks", "fours"
EXACT = 1e-12  # of the largest |logit|, in float64
BLOCK = 16
PIXELS = 4  # of one row that the stem reads as one
MOST = 2.0  # times as many channels that a depthwise convolution may get
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


@dataclass
class _Region:
    """Everything that carries the channels of one map: sources make them, sinks take them, `inside` treats each alone."""

    channels: int
    tensors: set[str] = field(default_factory=set)
    sources: list[NodeProto] = field(default_factory=list)
    inside: list[NodeProto] = field(default_factory=list)
    sinks: list[NodeProto] = field(default_factory=list)
    constants: list[tuple[NodeProto, int]] = field(default_factory=list)  # node, which input


def exact_steps(model: ModelProto, contract: Contract, pictures: np.ndarray) -> tuple[str, ...]:
    """Which of BLOCKS and FOURS the model can be laid out with; each only where it runs and float64 sees no difference.

    `pictures` uint8 (N, H, W, 3), of which one is enough: the zeros are the same for all. Raises ExportError.
    """
    expected = float64_reference.logits(model, contract, pictures[:1])
    found: tuple[str, ...] = ()
    for step in (BLOCKS, FOURS):
        candidate = _copy(model)
        try:
            # A step that has nothing to do is none; those before it are done too, since the next one meets their work.
            if apply(candidate, (*found, step))[1] == apply(_copy(model), found)[1]:
                continue
            answers = float64_reference.logits(candidate, contract, pictures[:1])
        except ExportError:
            continue
        if float(np.abs(answers - expected).max()) <= EXACT * float(np.abs(expected).max()):
            found = (*found, step)
    return found


def apply(model: ModelProto, steps: tuple[str, ...]) -> tuple[dict[str, str], int]:
    """Lay the model out, in place; returns its new tensors with the known ones of equal values, and how many layers changed."""
    widened = fill_blocks(model) if BLOCKS in steps else 0
    alike = read_pixels_in_fours(model) if FOURS in steps else {}
    if widened or alike:
        surgery.replace(model.graph.value_info, [])  # of other shapes, and the quantiser wants one for each tensor
        inferred = onnx.shape_inference.infer_shapes(model)
        model.CopyFrom(inferred)
    return alike, widened + bool(alike)


def _copy(model: ModelProto) -> ModelProto:
    made = ModelProto()
    made.CopyFrom(model)
    return made


def fill_blocks(model: ModelProto) -> int:
    """Give depthwise convolutions whole blocks of channels; what is added is multiplied by zero behind. Returns how many convolutions."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    read = surgery.consumers(model.graph)
    count = 0
    done: set[str] = set()
    for node in model.graph.node:
        channels = _depthwise(node, stored)
        if not channels or channels % BLOCK == 0 or node.output[0] in done:
            continue
        region = _region(model, node, channels, stored)
        weights = (
            [name for part in (*region.sources, *region.inside, *region.sinks) for name in part.input[1:3]]
            if region
            else []
        )
        if region is None or any(len(read[name]) != 1 for name in weights if name in stored):
            continue
        wanted = math.ceil(channels / BLOCK) * BLOCK
        if wanted > MOST * channels:
            continue
        _widen(model, region, wanted - channels, stored)
        done.update(part.output[0] for part in region.inside)
        count += len(region.inside)
    return count


def _depthwise(node: NodeProto, stored: dict) -> int:
    """Channels of a depthwise convolution; 0 for anything else."""
    if node.op_type != "Conv" or node.input[1] not in stored:
        return 0
    groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    dims = stored[node.input[1]].dims
    return groups if groups > 1 and dims[0] == groups and dims[1] == 1 else 0


def _region(model: ModelProto, start: NodeProto, channels: int, stored: dict) -> _Region | None:
    """The region around a depthwise convolution; None where something in it ties channels together."""
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
            end = (
                node.output[0],
                tensor in node.input,
            )  # not its name: parts of an inlined function have none; a layer may be source and sink
            if end in seen:
                continue
            more = _join(region, node, tensor, stored, known=(end[0], not end[1]) in seen)
            if more is None:
                return None
            seen.add(end)
            waiting += more
    return region


def _join(region: _Region, node: NodeProto, tensor: str, stored: dict, *, known: bool) -> list[str] | None:
    """Add a node that makes or reads `tensor`; returns the tensors that carry the channels on, None where it cannot be widened.

    `known`: the node was met at its other end, which is news for sources and sinks only.
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


def _widen(model: ModelProto, region: _Region, more: int, stored: dict) -> None:
    """Zeros: rows and biases of sources and of the depthwise convolutions, columns of sinks, constants."""
    for node in (*region.sources, *region.inside):
        for name in (name for name in node.input[1:3] if name):
            _pad(stored[name], 0, more)
        for attribute in node.attribute:
            if attribute.name == "group" and node in region.inside:
                attribute.i = region.channels + more
    for node in region.sinks:
        _pad(stored[node.input[1]], 1, more)
    for node, place in region.constants:  # a copy of its own: other regions may read the same constant
        own = model.graph.initializer.add()
        own.CopyFrom(stored[node.input[place]])
        own.name = f"{node.output[0]}_wide"
        _pad(own, len(own.dims) - 3, more)
        node.input[place] = own.name


def _pad(tensor, axis: int, more: int) -> None:
    value = numpy_helper.to_array(tensor)
    widths = [(0, more if place == axis else 0) for place in range(value.ndim)]
    tensor.CopyFrom(numpy_helper.from_array(np.pad(value, widths), tensor.name))


def read_pixels_in_fours(model: ModelProto) -> dict[str, str]:
    """Let a stem of stride 2 read four pixels of a row as one of twelve channels and answer for two columns at once.

    Returns the new tensors behind it with the known one that has the same values; none where it was not done. The pixels of a row lie side by
    side in (N, H, W, 3), so that (N, H, W / 4, 12) is the same memory, and so are the answers.
    """
    pixels = surgery.normalised_pixels(model.graph)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    readers = surgery.consumers(model.graph).get(pixels, [])
    if pixels == INPUT or len(readers) != 1 or readers[0].op_type != "Conv" or readers[0].input[1] not in stored:
        return {}
    stem = readers[0]
    weight = numpy_helper.to_array(stored[stem.input[1]])
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in stem.attribute}
    height, width = (dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:3])
    pads, kernel = list(attributes.get("pads", [0] * 4)), weight.shape[3]
    plain = (
        attributes.get("group", 1) == 1
        and list(attributes.get("dilations", [1, 1])) == [1, 1]
        and b"auto_pad" not in attributes
    )
    halves = width % PIXELS == 0 and (width + pads[1] + pads[3] - kernel) // 2 + 1 == width // 2
    if not plain or list(attributes.get("strides", [1, 1])) != [2, 2] or not halves or weight.shape[1] != 3:
        return {}
    fours, left, right = _in_fours(weight, pads[1])
    rows = (height + pads[0] + pads[2] - weight.shape[2]) // 2 + 1
    surgery.normalise_by_rows(model, 3 * PIXELS)
    return _replace_stem(model, stem, fours, [pads[0], left, pads[2], right], [0, rows, width // 2, weight.shape[0]])


def _in_fours(weight: np.ndarray, pad: int) -> tuple[np.ndarray, int, int]:
    """Weights (2 C, 12, kh, fours) of those (C, 3, kh, kw), and the fours of padding on the left and right.

    Answer 2 q + o of a row reads the columns 4 q + 2 o - pad + tap.
    """
    channels, _, height, kernel = weight.shape
    first, last = (-pad) // PIXELS, (2 + kernel - 1 - pad) // PIXELS
    fours = np.zeros((2, channels, PIXELS, 3, height, last - first + 1), weight.dtype)
    for odd in range(2):
        for tap in range(kernel):
            four, place = divmod(2 * odd - pad + tap, PIXELS)
            fours[odd, :, place, :, :, four - first] = weight[:, :, :, tap]
    return fours.reshape(2 * channels, 3 * PIXELS, height, last - first + 1), -first, last


def _replace_stem(
    model: ModelProto, stem: NodeProto, weight: np.ndarray, pads: list[int], answers: list[int]
) -> dict[str, str]:
    """`answers`: their shape with channels last."""
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    name, answer = stem.name, stem.output[0]
    new = {f"{name}_columns": np.array(answers, np.int64), f"{name}_fours_weight": weight}
    bias = [f"{name}_fours_bias"] if len(stem.input) > 2 and stem.input[2] else []
    if bias:
        new[bias[0]] = np.tile(stored[stem.input[2]], 2)
    # A Relu or Clip stays beside its convolution: one kernel computes both.
    tail = [node for node in surgery.consumers(model.graph).get(answer, []) if node.op_type in ("Relu", "Clip")]
    fused = tail if len(surgery.consumers(model.graph).get(answer, [])) == 1 else []
    last = fused[0].output[0] if fused else answer
    convolved = f"{name}_in_fours"
    inputs = [stem.input[0], f"{name}_fours_weight", *bias]
    nodes = [
        helper.make_node(
            "Conv", inputs, [convolved], name=name, strides=[2, 1], pads=pads, kernel_shape=list(weight.shape[2:])
        )
    ]
    for node in fused:
        nodes.append(
            helper.make_node(node.op_type, [convolved, *node.input[1:]], [f"{convolved}_active"], name=node.name)
        )
        convolved = f"{convolved}_active"
    nodes += [
        helper.make_node(
            "Transpose", [convolved], [f"{name}_fours_last"], name=f"{name}_fours_last", perm=[0, 2, 3, 1]
        ),
        helper.make_node("Reshape", [f"{name}_fours_last", f"{name}_columns"], [f"{name}_twos"], name=f"{name}_twos"),
        helper.make_node("Transpose", [f"{name}_twos"], [last], name=f"{name}_twos_first", perm=[0, 3, 1, 2]),
    ]
    model.graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in new.items())
    rest = list(model.graph.node)
    place = rest.index(stem)
    surgery.replace(
        model.graph.node, [*rest[:place], *nodes, *(node for node in rest[place + 1 :] if node not in fused)]
    )
    return dict.fromkeys((convolved, f"{name}_fours_last", f"{name}_twos"), last)
