"""Every loss against the golden vectors (float64, rtol 1e-9), its gradients, its limits."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compress import losses

GOLDEN = json.loads((Path(__file__).parent / "golden" / "testvectors.json").read_text())
EXPECTED = GOLDEN["expected"]


def tensor(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


V2 = {name: tensor(GOLDEN["inputs"]["V2"][name]) for name in ("z_s", "z_t")}
LABELS = torch.tensor(GOLDEN["inputs"]["V2"]["y"])


def close(value: Tensor, expected: float | list) -> None:
    torch.testing.assert_close(value, tensor(expected) if isinstance(expected, list) else torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_cross_entropy_is_golden():
    close(losses.cross_entropy(V2["z_s"], LABELS), EXPECTED["CE"])


def test_cross_entropy_ignores_unlabelled_pictures():
    both = losses.cross_entropy(V2["z_s"], torch.tensor([0, -1]))
    close(both, losses.cross_entropy(V2["z_s"][:1], LABELS[:1]).item())


@pytest.mark.parametrize("temperature", [1, 2, 4])
def test_binary_kl_norm_is_golden(temperature):
    close(losses.binary_kl_norm(V2["z_s"], V2["z_t"], temperature), EXPECTED[f"BinaryKLNorm_tau{temperature}"])


@pytest.mark.parametrize("temperature", [1, 2, 4])
def test_binary_kl_is_golden(temperature):
    close(losses.binary_kl(V2["z_s"], V2["z_t"], temperature), EXPECTED[f"BinaryKL_tau{temperature}"])


@pytest.mark.parametrize(("loss", "key"), [(losses.binary_kl_norm, "BinaryKLNorm_grad_tau2"), (losses.binary_kl, "BinaryKL_grad_tau2")])
def test_gradients_are_golden(loss, key):
    z = V2["z_s"].clone().requires_grad_()
    loss(z, V2["z_t"], 2.0).backward()
    close(z.grad, EXPECTED[key])


def test_binary_kl_norm_with_a_large_temperature_is_a_squared_error():
    close(losses.binary_kl_norm(V2["z_s"], V2["z_t"], 1e4).round(decimals=7), round(EXPECTED["BKLN_large_tau_limit"], 7))


def test_binary_kl_norm_is_symmetric_and_zero_at_equality():
    close(losses.binary_kl_norm(V2["z_s"], V2["z_t"], 2.0), losses.binary_kl_norm(V2["z_t"], V2["z_s"], 2.0).item())
    assert losses.binary_kl_norm(V2["z_s"], V2["z_s"], 2.0).item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_binary_kl_norm_stays_finite_far_out(sign, dtype):
    # The clamped sigmoid form is inf in float32 from a difference of 34 on, with a zero gradient.
    z = torch.full((1, 1), sign * 100, dtype=dtype, requires_grad=True)
    loss = losses.binary_kl_norm(z, torch.zeros(1, 1, dtype=dtype), 2.0)
    loss.backward()
    assert loss.item() == pytest.approx(EXPECTED["BKLN_dz100_tau2_N1K1"], rel=1e-6)
    assert z.grad.item() == pytest.approx(sign)


@pytest.mark.parametrize("difference", [34.0, 1e3, 1e4])
@pytest.mark.parametrize("loss", [losses.binary_kl_norm, losses.binary_kl, losses.kd_kl])
def test_losses_and_gradients_are_finite_for_extreme_logits(loss, difference):
    z = torch.tensor([[difference, -difference, 0.0]], requires_grad=True)
    value = loss(z, torch.tensor([[-difference, difference, 0.0]]), 2.0)
    value.backward()
    assert math.isfinite(value.item())
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("temperature", [1, 4])
def test_kd_is_golden(temperature):
    close(losses.kd_kl(V2["z_s"], V2["z_t"], temperature), EXPECTED[f"KD_T{temperature}"])


def test_kd_gradient_is_the_difference_of_softmaxes():
    z = V2["z_s"].clone().requires_grad_()
    losses.kd_kl(z, V2["z_t"], 4.0).backward()
    close(z.grad, (4.0 / 2 * (torch.softmax(V2["z_s"] / 4, 1) - torch.softmax(V2["z_t"] / 4, 1))).tolist())


def test_standardized_logits_have_mean_zero_and_unit_deviation():
    z = losses.standardize_logits(V2["z_s"])
    close(z.mean(dim=1), [0.0, 0.0])
    torch.testing.assert_close(z.std(dim=1), torch.ones(2, dtype=torch.float64), rtol=1e-6, atol=0)


def test_half_precision_inputs_are_raised_to_float32():
    assert losses.binary_kl_norm(V2["z_s"].bfloat16(), V2["z_t"].bfloat16(), 2.0).dtype == torch.float32
    assert losses.kd_kl(V2["z_s"].half(), V2["z_t"].half(), 4.0).dtype == torch.float32
