"""Fake quantisation: onnxruntime's arithmetic, and gradients that pass straight through the rounding."""

from __future__ import annotations

import math

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.quant_utils import compute_scale_zp
from torch import Tensor

from export.int8.qat.fake_quant import (
    quantize_activation,
    quantize_bias,
    quantize_weight,
    scale_and_zero_point,
    weight_scale,
)

RANGES = [(0.0, 6.0), (-1.3, 2.7), (-4.0, 0.0), (-0.37, 5.2), (0.0, 0.0), (-2e-3, 1e-3)]


def _pair(x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray) -> np.ndarray:
    """QuantizeLinear and DequantizeLinear in onnxruntime."""
    constants = [numpy_helper.from_array(value, name) for name, value in (("scale", scale), ("zero", zero_point))]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * x.ndim) for name in ("x", "y")]
    model = helper.make_model(
        helper.make_graph(nodes, "pair", ends[:1], ends[1:], constants),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    answer: np.ndarray = session.run(None, {"x": x})[0]
    return answer


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
@pytest.mark.parametrize(("low", "high"), RANGES)
def test_activations_are_rounded_as_onnxruntime_rounds(low: float, high: float, kind: type) -> None:
    limits = np.iinfo(kind)
    x = np.random.default_rng(0).normal(0, 3, (4, 5, 6)).astype(np.float32)
    ends = (np.float32(low), np.float32(high))
    zero, scale = compute_scale_zp(*ends, np.array(limits.min, kind), np.array(limits.max, kind))

    own_scale, own_zero = scale_and_zero_point(*(torch.tensor(end) for end in ends), limits.min, limits.max)
    found = quantize_activation(torch.from_numpy(x), *(torch.tensor(end) for end in ends), limits.min, limits.max)

    assert (own_scale.item(), own_zero.item()) == (float(np.float32(scale)), int(zero))
    np.testing.assert_array_equal(found.numpy(), _pair(x, np.float32(scale), np.array(zero, kind)))


def _straight(x: Tensor) -> Tensor:
    return x + (torch.round(x) - x).detach()


def _by_autograd(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    scale = (high - low) / 255
    zero_point = _straight(-low / scale)
    return (torch.clamp(_straight(x / scale) + zero_point, 0, 255) - zero_point) * scale


@pytest.mark.parametrize(("low", "high"), [(-1.3, 2.7), (-0.37, 5.2)])
def test_gradients_are_those_of_the_straight_through_formula(low: float, high: float) -> None:
    x, weight = (torch.randn(4, 50, generator=torch.Generator().manual_seed(seed)) * 2 for seed in (0, 1))
    ends = torch.tensor(low), torch.tensor(high)
    own = [part.clone().requires_grad_() for part in (x, *ends)]
    reference = [
        part.double().requires_grad_() for part in (x, *ends)
    ]  # in float32 the sum in `_straight` leaves the whole numbers
    found = torch.autograd.grad((quantize_activation(*own, 0, 255) * weight).sum(), own)
    expected = [part.float() for part in torch.autograd.grad((_by_autograd(*reference) * weight).sum(), reference)]
    damping = 1 / math.sqrt(50 * 255)

    assert ((x < low) | (x > high)).any()
    torch.testing.assert_close(found[0], expected[0])
    for place in (1, 2):  # half a level of 255: the zero point is a whole number there
        torch.testing.assert_close(found[place] / damping, expected[place], rtol=0.5 / 255, atol=1e-3)


@pytest.mark.parametrize("levels", [127, 64])
@pytest.mark.parametrize("axis", [0, None])
def test_weights_are_rounded_as_the_quantiser_rounds(levels: int, axis: int | None) -> None:
    weight = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    parts = weight.detach().numpy().reshape(3, -1) if axis == 0 else weight.detach().numpy().reshape(1, -1)
    ends = np.array(-levels, np.int8), np.array(levels, np.int8)
    scales = [float(np.float32(compute_scale_zp(part.min(), part.max(), *ends, symmetric=True)[1])) for part in parts]

    scale = weight_scale(weight, levels, axis)
    rounded = quantize_weight(weight, scale, levels)
    rounded.sum().backward()

    assert scale.flatten().tolist() == scales
    integers = (rounded / scale).detach()
    torch.testing.assert_close(integers, integers.round())
    assert integers.abs().max().round() == levels and (rounded - weight).abs().max() <= scale.max() / 2 * 1.0001
    assert torch.equal(weight.grad, torch.ones_like(weight))


def test_a_weight_of_zeros_and_a_bias_stay_finite() -> None:
    scale = weight_scale(torch.zeros(2, 3), 127, 0)
    bias = torch.tensor([0.1, -70000.0], requires_grad=True)

    assert torch.equal(scale, torch.ones(2, 1)) and torch.equal(
        quantize_weight(torch.zeros(2, 3), scale, 127), torch.zeros(2, 3)
    )
    rounded = quantize_bias(bias, torch.tensor([[0.25], [1e-3]]))
    rounded.sum().backward()
    torch.testing.assert_close(rounded.detach(), torch.tensor([0.0, -70000.0]))
    assert torch.equal(bias.grad, torch.ones(2))
