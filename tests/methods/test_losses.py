"""Every loss against the golden vectors (float64, rtol 1e-9), its gradients, its limits."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import NormalDist

import pytest
import torch
from torch import Tensor, nn

from compress.methods import losses

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "testvectors.json").read_text())
EXPECTED = GOLDEN["expected"]


def tensor(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


V2 = {name: tensor(GOLDEN["inputs"]["V2"][name]) for name in ("z_s", "z_t")}
LABELS = torch.tensor(GOLDEN["inputs"]["V2"]["y"])


def close(value: Tensor, expected: float | list) -> None:
    torch.testing.assert_close(
        value,
        tensor(expected) if isinstance(expected, list) else torch.tensor(expected, dtype=torch.float64),
        rtol=1e-9,
        atol=1e-12,
    )


def test_cross_entropy_is_golden():
    close(losses.cross_entropy(V2["z_s"], LABELS), EXPECTED["CE"])


def test_cross_entropy_ignores_unlabelled_images():
    both = losses.cross_entropy(V2["z_s"], torch.tensor([0, -1]))
    close(both, losses.cross_entropy(V2["z_s"][:1], LABELS[:1]).item())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_weights_are_those_of_torch_over_the_number_of_images(smoothing):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 3, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.tensor([0] * 24 + [1] * 12 + [2] * 4)
    weights = 40 / (3 * torch.bincount(labels).double())
    batch = torch.randperm(40, generator=generator)[:8]
    theirs = nn.CrossEntropyLoss(weight=weights, label_smoothing=smoothing, reduction="sum")
    ours = losses.cross_entropy(logits[batch], labels[batch], smoothing, weights)
    close(ours, theirs(logits[batch], labels[batch]).item() / 8)
    # Over all images the weights sum to their number, and torch's own mean is the same, with its gradient.
    mean = nn.CrossEntropyLoss(weight=weights, label_smoothing=smoothing)(logits, labels)
    whole = losses.cross_entropy(logits, labels, smoothing, weights)
    close(whole, mean.item())
    one, other = (torch.autograd.grad(loss, logits)[0] for loss in (whole, mean))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    same = losses.cross_entropy(logits[batch], labels[batch], smoothing, torch.ones(3))
    close(same, losses.cross_entropy(logits[batch], labels[batch], smoothing).item())


def test_weighted_cross_entropy_ignores_unlabelled_images():
    logits, weights = V2["z_s"].clone().requires_grad_(), torch.arange(1.0, V2["z_s"].shape[1] + 1)
    both = losses.cross_entropy(logits, torch.tensor([0, -1]), 0.1, weights)
    close(both, losses.cross_entropy(logits[:1], torch.tensor([0]), 0.1, weights).item())
    none = losses.cross_entropy(logits, torch.tensor([-1, -1]), 0.1, weights)
    assert none.item() == 0 and not torch.autograd.grad(none, logits)[0].any()


@pytest.mark.parametrize("temperature", [1, 2, 4])
def test_binary_kl_norm_is_golden(temperature):
    close(losses.binary_kl_norm(V2["z_s"], V2["z_t"], temperature), EXPECTED[f"BinaryKLNorm_tau{temperature}"])


@pytest.mark.parametrize("temperature", [1, 2, 4])
def test_binary_kl_is_golden(temperature):
    close(losses.binary_kl(V2["z_s"], V2["z_t"], temperature), EXPECTED[f"BinaryKL_tau{temperature}"])


@pytest.mark.parametrize(
    ("loss", "key"), [(losses.binary_kl_norm, "BinaryKLNorm_grad_tau2"), (losses.binary_kl, "BinaryKL_grad_tau2")]
)
def test_gradients_are_golden(loss, key):
    z = V2["z_s"].clone().requires_grad_()
    loss(z, V2["z_t"], 2.0).backward()
    close(z.grad, EXPECTED[key])


def test_binary_kl_norm_with_a_large_temperature_is_a_squared_error():
    close(
        losses.binary_kl_norm(V2["z_s"], V2["z_t"], 1e4).round(decimals=7), round(EXPECTED["BKLN_large_tau_limit"], 7)
    )


def test_binary_kl_norm_is_symmetric_and_zero_at_equality():
    close(losses.binary_kl_norm(V2["z_s"], V2["z_t"], 2.0), losses.binary_kl_norm(V2["z_t"], V2["z_s"], 2.0).item())
    assert losses.binary_kl_norm(V2["z_s"], V2["z_s"], 2.0).item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_binary_kl_norm_stays_finite_for_large_differences(sign, dtype):
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


def drawn(which: str, *shape: int) -> Tensor:
    """The specification's maps: A_i = ((3 i) mod 7) / 2 - 1.5, B_i = ((5 i) mod 11) / 4 - 1, i in C order."""
    i = torch.arange(math.prod(shape), dtype=torch.int64)
    flat = ((3 * i) % 7).double() / 2 - 1.5 if which == "A" else ((5 * i) % 11).double() / 4 - 1
    return flat.view(shape)


V3 = [tensor(GOLDEN["inputs"]["V3"][name]) for name in ("z_s", "z_t")]
PAIR = (drawn("A", 2, 3, 2, 2), drawn("B", 2, 3, 2, 2))


# --- dkd


@pytest.mark.parametrize("temperature", [1, 4])
def test_decoupled_kd_is_golden(temperature):
    scale = (
        1 if temperature == 4 else temperature**2
    )  # the vectors of T = 4 have T^2 inside, and T = 1 does not show it
    target, others = losses.decoupled_kd(V2["z_s"], V2["z_t"], LABELS, temperature)
    close(target / scale, EXPECTED[f"TCKD_T{temperature}"])
    close(others / scale, EXPECTED[f"NCKD_T{temperature}"])


def test_kd_is_tckd_plus_nckd_weighted_by_the_teachers_doubt():
    doubt = 1 - torch.softmax(V2["z_t"], 1)[[0, 1], LABELS]
    parts = [losses.decoupled_kd(V2["z_s"][n : n + 1], V2["z_t"][n : n + 1], LABELS[n : n + 1], 1.0) for n in (0, 1)]
    close(
        sum(t + d * o for (t, o), d in zip(parts, doubt, strict=True)) / 2,
        losses.kd_kl(V2["z_s"], V2["z_t"], 1.0).item(),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("logits", [[120.0, 0.0, 0.0], [-500.0, 10.0, 10.0], [1e4, -1e4, 0.0]])
def test_decoupled_kd_stays_finite_where_log_of_a_sum_is_log_0(logits, dtype):
    # softmax, sum, log gives inf and a NaN gradient in float32 on the first two
    z = torch.tensor([logits], dtype=dtype, requires_grad=True)
    target, others = losses.decoupled_kd(z, torch.tensor([[2.0, 0.5, -1.0]]), torch.tensor([0]), 1.0)
    (target + others).backward()
    assert torch.isfinite(target) and torch.isfinite(others) and torch.isfinite(z.grad).all()


def test_nckd_of_two_classes_is_zero_and_unlabelled_images_do_not_count():
    z, t = torch.tensor([[1.0, 2.0], [0.3, 0.1]], requires_grad=True), torch.tensor([[0.5, 0.1], [1.0, 2.0]])
    assert losses.decoupled_kd(z, t, torch.tensor([0, 1]), 4.0)[1].item() == 0
    both = losses.decoupled_kd(V2["z_s"], V2["z_t"], torch.tensor([0, -1]), 4.0)
    alone = losses.decoupled_kd(V2["z_s"][:1], V2["z_t"][:1], torch.tensor([0]), 4.0)
    assert [one.item() for one in both] == pytest.approx([one.item() for one in alone])


# --- dist


@pytest.mark.parametrize("temperature", [1, 4])
def test_dist_is_golden(temperature):
    inter, intra = losses.dist_relations(V2["z_s"], V2["z_t"], temperature)
    close(inter, EXPECTED[f"DIST_inter_tau{temperature}"])
    close(intra, EXPECTED[f"DIST_intra_tau{temperature}"])
    close(temperature**2 * (inter + intra), EXPECTED[f"DIST_sum_tau{temperature}_with_tau2"])


def test_dist_of_three_images_is_golden():
    inter, intra = losses.dist_relations(*V3, 1.0)
    close(inter, EXPECTED["DIST3_inter"])
    close(intra, EXPECTED["DIST3_intra"])
    close(inter + intra, EXPECTED["DIST3_sum"])
    close(16 * sum(losses.dist_relations(*V3, 4.0)), EXPECTED["DIST3_sum_tau4_with_tau2"])


def test_dist_of_one_image_has_no_intra_relation_and_gradients_stay_finite():
    z = V2["z_s"][:1].clone().requires_grad_()
    inter, intra = losses.dist_relations(z, V2["z_t"][:1], 1.0)  # the plain formula says 1 for intra
    assert intra.item() == 0 and inter.item() > 0
    flat = torch.zeros(3, 4, requires_grad=True)  # norms are 0: sqrt's gradient would be inf
    sum(losses.dist_relations(flat, torch.randn(3, 4), 1.0)).backward()
    assert torch.isfinite(flat.grad).all()


# --- maps


def test_hint_and_simkd_are_golden():
    close(losses.hint(*PAIR), EXPECTED["FitNet_MSE_identity"])
    close(100 * losses.hint(*PAIR), EXPECTED["FitNet_x100"])
    close(losses.hint(*PAIR), EXPECTED["SimKD_MSE"])


def test_attention_is_golden_and_pools_the_larger_map():
    close(losses.attention(*PAIR), EXPECTED["AT_single_stage"])
    close(1000 * losses.attention(*PAIR), EXPECTED["AT_x1000"])
    close(losses.attention(PAIR[0], drawn("B", 2, 5, 4, 4)), EXPECTED["AT_teacher_5ch_4x4_pooled"])


def test_attention_of_a_dead_map_is_finite():
    dead = torch.zeros(2, 3, 2, 2, requires_grad=True)
    losses.attention(dead, PAIR[1].float()).backward()
    assert torch.isfinite(dead.grad).all()


def test_margins_are_golden_and_ofd_too():
    margins = losses.margins(tensor(GOLDEN["inputs"]["OFD"]["gamma"]), tensor(GOLDEN["inputs"]["OFD"]["beta"]))
    close(margins, EXPECTED["OFD_margins"])
    target = losses.margin_relu(PAIR[1], margins)
    close(losses.partial_l2(PAIR[0], target), EXPECTED["OFD_sum_over_batch"])
    assert int(((PAIR[0] > target) | (target > 0)).sum()) == EXPECTED["OFD_active_elements"]


def test_margins_of_all_channels_at_once_are_each_channels_own():
    """The authors' code loops over the channels with scipy; here one by one with the standard library."""
    gamma, beta = torch.linspace(-2, 2, 40, dtype=torch.float64) + 0.01, torch.linspace(-3, 1, 40, dtype=torch.float64)
    normal = NormalDist()
    wanted = []
    for scale, shift in zip(gamma.abs().tolist(), beta.tolist(), strict=True):
        below = normal.cdf(-shift / scale)
        wanted.append(shift - scale * normal.pdf(shift / scale) / below if below > 1e-3 else -3 * scale)
    assert losses.margins(gamma, beta).tolist() == pytest.approx(wanted, rel=1e-9)


def test_exact_margins_have_no_jump_and_no_division_by_zero():
    one = torch.ones(2, dtype=torch.float64)
    ratio = tensor([3.0, 3.2])
    close(losses.margins(one, ratio), [losses.margins(one, ratio, exact=True)[0].item(), -3.0])
    assert losses.margins(one, ratio, exact=True).tolist() == pytest.approx([-0.283, -0.270], abs=5e-4)
    draws = torch.distributions.Normal(1.0, 2.0).sample((400_000,))
    assert losses.margins(tensor([-2.0]), tensor([1.0])).item() == pytest.approx(
        draws[draws < 0].mean().item(), abs=0.02
    )
    assert losses.margins(tensor([0.0, 0.0]), tensor([0.5, -0.5])).tolist() == [0.0, -0.5]
    assert torch.isfinite(losses.margins(one, tensor([50.0, -50.0]), exact=True)).all()


@pytest.mark.parametrize("shape", [(2, 3, 2, 2), (2, 3, 8, 8), (2, 3, 1, 1)])
def test_hierarchical_context_is_golden(shape):
    close(
        losses.hierarchical_context(drawn("A", *shape), drawn("B", *shape)),
        EXPECTED["HCL_" + "x".join(map(str, shape))],
    )


def test_class_activation_is_golden():
    maps = (drawn("A", 2, 3, 4, 4), drawn("B", 2, 3, 4, 4))
    close(losses.class_activation(*maps, 2, normalize=False), EXPECTED["CAT_unnorm_res2"])
    close(losses.class_activation(*maps, 2, normalize=True), EXPECTED["CAT_norm_res2"])
    close(losses.class_activation(*maps, 1, normalize=True), EXPECTED["CAT_norm_res1 (degenerate: sign only)"])


# --- relations


def test_rkd_is_golden():
    close(losses.rkd_distance(*V3), EXPECTED["RKD3_dist"])
    close(losses.rkd_angle(*V3), EXPECTED["RKD3_angle"])
    close(25 * losses.rkd_distance(*V3) + 50 * losses.rkd_angle(*V3), EXPECTED["RKD3_25_50"])


def test_rkd_of_a_pair_is_zero_and_equal_images_have_finite_gradients():
    assert losses.rkd_distance(V2["z_s"], V2["z_t"]).item() == 0
    assert losses.rkd_angle(V2["z_s"], V2["z_t"]).item() == pytest.approx(0, abs=1e-15)
    e = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 1.0]], requires_grad=True)
    (losses.rkd_distance(e, V3[1].float()) + losses.rkd_angle(e, V3[1].float())).backward()
    assert torch.isfinite(e.grad).all() and e.grad.abs().sum() > 0


def test_rkd_computes_no_tensor_of_pairwise_differences():
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            largest = max(
                largest,
                *(one.numel() for one in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(one, Tensor)),
                0,
            )
            return out

    e = torch.randn(20, 4096, requires_grad=True)
    with Watch():
        (losses.rkd_distance(e, torch.randn(20, 64)) + losses.rkd_angle(e, torch.randn(20, 64))).backward()
    assert largest == 20 * 4096  # the vectors themselves; N x N x d would be twenty times as much


def test_rkd_matches_the_plain_formula_in_float32_far_from_the_origin():
    torch.manual_seed(0)
    e, t = (
        torch.randn(8, 16) + 100,
        torch.randn(8, 3),
    )  # a Gram matrix of such vectors would cancel: it is taken around their mean
    torch.testing.assert_close(
        losses.rkd_angle(e, t).double(), losses.rkd_angle(e.double(), t.double()), rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(
        losses.rkd_distance(e, t).double(), losses.rkd_distance(e.double(), t.double()), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("temperature", [0.5, 0.07])
def test_contrast_is_golden(temperature):
    given, wanted = GOLDEN["inputs"]["CRD"], EXPECTED[f"CRD_T{temperature}"]
    rows = torch.tensor(given["contrast"])
    for vectors, memory, side in ((V2["z_s"], given["mem_t"], "s"), (V2["z_t"], given["mem_s"], "t")):
        scores = torch.einsum("nkd,nd->nk", tensor(memory)[rows], nn.functional.normalize(vectors, dim=1)) / temperature
        log_z = torch.logsumexp(scores.flatten(), 0) - math.log(scores.numel() / given["n_data"])
        close(log_z.exp(), wanted[f"Z_{side}"])
        close(losses.contrastive_nce(scores, log_z, given["n_data"]), wanted[f"loss_{side}"])


def test_contrast_stays_finite_where_exp_does_not():
    scores = torch.tensor([[200.0, -200.0, 150.0]], requires_grad=True)
    losses.contrastive_nce(scores, torch.tensor(0.0), 5).backward()
    assert torch.isfinite(scores.grad).all()


def test_half_precision_inputs_are_upcast_to_float32():
    assert losses.binary_kl_norm(V2["z_s"].bfloat16(), V2["z_t"].bfloat16(), 2.0).dtype == torch.float32
    assert losses.kd_kl(V2["z_s"].half(), V2["z_t"].half(), 4.0).dtype == torch.float32
