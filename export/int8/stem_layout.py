"""The stem's layout for integer kernels: four pixels of a row read as one, so that its input channels come in fours."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from export.graph import surgery
from export.runtime import INPUT

# Pixels of one row that the stem reads as one.
STEM_PIXELS = 4


def read_pixels_in_fours(model: ModelProto) -> dict[str, str]:
    """Make a stem of stride 2 read four pixels of a row as one of twelve channels, and answer for two columns at once.

    The pixels of a row lie side by side in (N, H, W, 3), so (N, H, W / 4, 12) is the same memory; the same holds for
    the answers. Returns the new tensors behind the stem with the known one that has the same values; empty if it was
    not done.
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
    halves = width % STEM_PIXELS == 0 and (width + pads[1] + pads[3] - kernel) // 2 + 1 == width // 2
    if not plain or list(attributes.get("strides", [1, 1])) != [2, 2] or not halves or weight.shape[1] != 3:
        return {}
    fours, left, right = _in_fours(weight, pads[1])
    rows = (height + pads[0] + pads[2] - weight.shape[2]) // 2 + 1
    surgery.normalise_by_rows(model, 3 * STEM_PIXELS)
    return _replace_stem(model, stem, fours, [pads[0], left, pads[2], right], [0, rows, width // 2, weight.shape[0]])


def _in_fours(weight: np.ndarray, pad: int) -> tuple[np.ndarray, int, int]:
    """Return weights (2 C, 12, kh, fours) for weights (C, 3, kh, kw), and the fours of padding on the left and right.

    Answer 2 q + o of a row reads the columns 4 q + 2 o - pad + tap.
    """
    channels, _, height, kernel = weight.shape
    first, last = (-pad) // STEM_PIXELS, (2 + kernel - 1 - pad) // STEM_PIXELS
    fours = np.zeros((2, channels, STEM_PIXELS, 3, height, last - first + 1), weight.dtype)
    for odd in range(2):
        for tap in range(kernel):
            four, place = divmod(2 * odd - pad + tap, STEM_PIXELS)
            fours[odd, :, place, :, :, four - first] = weight[:, :, :, tap]
    return fours.reshape(2 * channels, 3 * STEM_PIXELS, height, last - first + 1), -first, last


def _replace_stem(
    model: ModelProto, stem: NodeProto, weight: np.ndarray, pads: list[int], answers: list[int]
) -> dict[str, str]:
    """Replace the stem by one with these weights and pads; `answers` is the shape of its answers with channels last."""
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
