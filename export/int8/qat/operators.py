"""The operators of our exported networks in torch: what an ONNX node computes, as a function of tensors with gradients.

A graph is run as it is written, so that training sees what the file computes. An unknown operator is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from onnx import NodeProto, helper
from torch import Tensor

from export.runtime import ExportError

# None: an optional input that is left out.
Value = Tensor | None
Attributes = Mapping[str, Any]
Operator = Callable[[Attributes, Sequence[Value]], Tensor | Sequence[Tensor]]


def attributes_of(node: NodeProto) -> dict[str, Any]:
    """Return the node's attributes as Python values."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def operator(node: NodeProto) -> Operator:
    """Return what the node computes. Raises ExportError for an unknown operator."""
    if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"):
        raise ExportError(
            f"{node.name or node.output[0]}: the operator {node.op_type} cannot be trained; "
            f"known are {', '.join(sorted(OPERATORS))}"
        )
    return OPERATORS[node.op_type]


def _needed(values: Sequence[Value], place: int) -> Tensor:
    value = values[place] if place < len(values) else None
    if value is None:
        raise ExportError(f"an operator's input {place} is missing")
    return value


def _padded(x: Tensor, attributes: Attributes, value: float = 0.0) -> tuple[Tensor, Any]:
    """Return x (N, C, H, W) and the padding that torch can do itself; unequal sides are padded here."""
    if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise ExportError(f"auto_pad {attributes['auto_pad'].decode()} cannot be trained")
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    if (top, left) == (bottom, right):
        return x, (top, left)
    return F.pad(x, (left, right, top, bottom), value=value), (0, 0)


def _conv(attributes: Attributes, values: Sequence[Value]) -> Tensor:
    x, padding = _padded(_needed(values, 0), attributes)
    bias = values[2] if len(values) > 2 else None
    stride, dilation = attributes.get("strides", (1, 1)), attributes.get("dilations", (1, 1))
    return F.conv2d(x, _needed(values, 1), bias, stride, padding, dilation, attributes.get("group", 1))


def _gemm(attributes: Attributes, values: Sequence[Value]) -> Tensor:
    a, b = _needed(values, 0), _needed(values, 1)
    a, b = (a.T if attributes.get("transA") else a), (b.T if attributes.get("transB") else b)
    out: Tensor = attributes.get("alpha", 1.0) * (a @ b)
    bias = values[2] if len(values) > 2 else None
    return out if bias is None else out + attributes.get("beta", 1.0) * bias


def _clip(attributes: Attributes, values: Sequence[Value]) -> Tensor:
    low, high = (*values[1:], None, None)[:2]
    x = _needed(values, 0)
    return x if low is None and high is None else torch.clamp(x, min=low, max=high)


def _max_pool(attributes: Attributes, values: Sequence[Value]) -> Tensor:
    x, padding = _padded(_needed(values, 0), attributes, -torch.inf)
    return F.max_pool2d(
        x,
        attributes["kernel_shape"],
        attributes.get("strides", (1, 1)),
        padding,
        attributes.get("dilations", (1, 1)),
        bool(attributes.get("ceil_mode")),
    )


def _average_pool(attributes: Attributes, values: Sequence[Value]) -> Tensor:
    counted = bool(attributes.get("count_include_pad"))
    x, padding = _padded(_needed(values, 0), attributes)
    if padding == (0, 0) and any(attributes.get("pads", ())) and not counted:
        raise ExportError("AveragePool with unequal padding that is not counted cannot be trained")
    strides = attributes.get("strides", (1, 1))
    return F.avg_pool2d(x, attributes["kernel_shape"], strides, padding, bool(attributes.get("ceil_mode")), counted)


def _reshape(attributes: Attributes, values: Sequence[Value]) -> Tensor:
    x, wanted = _needed(values, 0), _whole(_needed(values, 1))
    if not attributes.get("allowzero"):
        wanted = [x.shape[place] if size == 0 else size for place, size in enumerate(wanted)]
    return x.reshape(wanted)


def _split(attributes: Attributes, values: Sequence[Value]) -> Sequence[Tensor]:
    x, axis = _needed(values, 0), attributes.get("axis", 0)
    if len(values) > 1:
        return torch.split(x, _whole(_needed(values, 1)), dim=axis)
    return torch.chunk(x, attributes["num_outputs"], dim=axis)


def _slice(attributes: Attributes, values: Sequence[Value]) -> Tensor:
    x, starts, ends = _needed(values, 0), _whole(_needed(values, 1)), _whole(_needed(values, 2))
    axes = _whole(_needed(values, 3)) if len(values) > 3 else list(range(len(starts)))
    steps = _whole(_needed(values, 4)) if len(values) > 4 else [1] * len(starts)
    if any(step < 1 for step in steps):
        raise ExportError("Slice backwards cannot be trained")
    cut = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        cut[axis] = slice(start, end, step)
    return x[tuple(cut)]


def _gather(attributes: Attributes, values: Sequence[Value]) -> Tensor:
    x, index, axis = _needed(values, 0), _needed(values, 1), attributes.get("axis", 0) % _needed(values, 0).ndim
    shape = (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
    return x.index_select(axis, index.reshape(-1) % x.shape[axis]).reshape(shape)


def _reduce_mean(attributes: Attributes, values: Sequence[Value]) -> Tensor:
    x, keep = _needed(values, 0), bool(attributes.get("keepdims", 1))
    axes = _whole(_needed(values, 1)) if len(values) > 1 and values[1] is not None else list(range(x.ndim))
    return x.mean(dim=axes, keepdim=keep)


def _whole(value: Tensor) -> list[int]:
    return [int(item) for item in value.reshape(-1).tolist()]


def _batch_norm(attributes: Attributes, values: Sequence[Value]) -> Tensor:
    x, weight, bias, mean, variance = (_needed(values, place) for place in range(5))
    return F.batch_norm(x, mean, variance, weight, bias, eps=attributes.get("epsilon", 1e-5))


def _hard_sigmoid(attributes: Attributes, values: Sequence[Value]) -> Tensor:
    return torch.clamp(_needed(values, 0) * attributes.get("alpha", 0.2) + attributes.get("beta", 0.5), 0.0, 1.0)


def _pairwise(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda attributes, values: function(_needed(values, 0), _needed(values, 1))


def _single(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda attributes, values: function(_needed(values, 0))


OPERATORS: dict[str, Operator] = {
    "Add": _pairwise(torch.add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Concat": lambda attributes, values: torch.cat(
        [value for value in values if value is not None], dim=attributes["axis"]
    ),
    "Conv": _conv,
    "Div": _pairwise(torch.div),
    "Flatten": lambda attributes, values: _needed(values, 0).flatten(attributes.get("axis", 1)),
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": _single(lambda x: x.mean(dim=(2, 3), keepdim=True)),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _single(lambda x: x * torch.clamp(x / 6 + 0.5, 0.0, 1.0)),
    "Identity": _single(lambda x: x),
    "MatMul": _pairwise(torch.matmul),
    "Max": _pairwise(torch.maximum),
    "MaxPool": _max_pool,
    "Min": _pairwise(torch.minimum),
    "Mul": _pairwise(torch.mul),
    "ReduceMean": _reduce_mean,
    "Relu": _single(torch.relu),
    "Reshape": _reshape,
    "Sigmoid": _single(torch.sigmoid),
    "Slice": _slice,
    "Split": _split,
    "Squeeze": lambda attributes, values: _needed(values, 0).squeeze(tuple(_whole(_needed(values, 1)))),
    "Sub": _pairwise(torch.sub),
    "Transpose": lambda attributes, values: _needed(values, 0).permute(attributes["perm"]),
    "Unsqueeze": lambda attributes, values: _unsqueeze(_needed(values, 0), _whole(_needed(values, 1))),
}


def _unsqueeze(x: Tensor, axes: list[int]) -> Tensor:
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def constant(array: np.ndarray) -> Tensor:
    """Return an initializer as a tensor of its own."""
    return torch.from_numpy(np.array(array))
