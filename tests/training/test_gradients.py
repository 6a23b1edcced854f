"""Gradient alignment against golden vectors and against a flattened float64 projection from the formula."""

from __future__ import annotations

import json
from pathlib import Path

import authors_loop
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from compress.methods.losses import binary_kl_norm, cross_entropy
from compress.training import gradients
from compress.training.engine.autograd_reach import reachable_leaf_ids
from compress.training.gradients import aligned_backward, cosine, sum_backward

DATA = json.loads((Path(__file__).parents[1] / "golden" / "testvectors.json").read_text())
GA = DATA["expected"]["GA"]


def two_heads():
    parameters = [torch.tensor(GA[name], dtype=torch.float64, requires_grad=True) for name in ("W_b", "W_m", "W_a")]
    features = torch.tensor(GA["x"], dtype=torch.float64) @ parameters[0].T
    task = cross_entropy(features @ parameters[1].T, torch.tensor([0, 1]))
    auxiliary = binary_kl_norm(
        features @ parameters[2].T, torch.tensor(DATA["inputs"]["V2"]["z_t"], dtype=torch.float64), 2.0
    )
    return task, auxiliary, parameters


def assert_golden(parameter, key):
    expected = torch.tensor(GA[key], dtype=torch.float64).reshape(parameter.shape)
    torch.testing.assert_close(parameter.grad, expected, rtol=1e-8, atol=2e-10)


def test_losses_of_the_golden_case():
    task, auxiliary, _ = two_heads()
    assert task.item() == pytest.approx(GA["ce"], rel=1e-9)
    assert auxiliary.item() == pytest.approx(GA["bkln"], rel=1e-9)


def test_plain_sum_is_golden():
    task, auxiliary, parameters = two_heads()
    sum_backward([task, auxiliary], parameters)
    assert_golden(parameters[0], "grad_Wb_none")
    assert_golden(parameters[1], "grad_Wm_none")
    assert_golden(parameters[2], "grad_Wa")


@pytest.mark.parametrize(("scope", "classifier"), [("all", "grad_Wm_all"), ("shared", "grad_Wm_none")])
def test_aligned_gradients_are_golden(scope, classifier):
    task, auxiliary, parameters = two_heads()
    aligned_backward(task, auxiliary, parameters, scope=scope)
    assert_golden(parameters[0], f"grad_Wb_{scope}")
    assert_golden(parameters[1], classifier)
    assert_golden(parameters[2], "grad_Wa")


def test_the_published_loop_that_speed_is_measured_against_steps_the_golden_gradients():
    task, auxiliary, parameters = two_heads()
    authors_loop.aligned_step(torch.optim.SGD(parameters, lr=0.5), task, auxiliary)
    for parameter, name, key in zip(
        parameters, ("W_b", "W_m", "W_a"), ("grad_Wb_all", "grad_Wm_all", "grad_Wa"), strict=True
    ):
        assert_golden(parameter, key)
        torch.testing.assert_close(
            parameter.detach(), torch.tensor(GA[name], dtype=torch.float64) - 0.5 * parameter.grad
        )
    logits, teacher = torch.randn(2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(authors_loop.binary_kl_norm(logits, teacher, 2.0), binary_kl_norm(logits, teacher, 2.0))


def test_agreeing_gradients_are_left_alone():
    w = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    aligned_backward((w**2).sum(), (w**4).sum(), [w], scope="all")
    torch.testing.assert_close(w.grad, (2 * w + 4 * w**3).detach())


def test_shared_projection_removes_the_whole_conflict():
    w = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    v = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    task, auxiliary = w[0] + w[1] + v[0], -2 * w[0] + w[1]
    aligned_backward(task, auxiliary, [w, v], scope="shared")
    # g_aux = (-2, 1) projected off (1, 1): (-1.5, 1.5), orthogonal to the task's gradient.
    torch.testing.assert_close(w.grad, torch.tensor([1 - 1.5, 1 + 1.5], dtype=torch.float64))
    assert v.grad.item() == 1.0


def test_a_free_loss_is_added_unprojected():
    w = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    aligned_backward(w.sum(), -3 * w.sum(), [w], scope="all", free=10 * w.sum())
    assert w.grad.item() == pytest.approx(1 + 0 + 10)


@pytest.mark.parametrize("cuda", [False, True], ids=["by sums", "by norms, as on CUDA"])
@pytest.mark.parametrize("scope", ["all", "shared"])
def test_aligned_backward_equals_the_flattened_projection(scope, cuda, monkeypatch):
    if cuda:
        monkeypatch.setattr(
            gradients,
            "_sum_of_products",
            lambda left, right: gradients._sum_in_few_launches(torch._foreach_mul(left, right)),
        )
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 5)).double()
    main, extra = torch.nn.Linear(5, 3).double(), torch.nn.Linear(5, 3).double()
    parameters = [*body.parameters(), *main.parameters(), *extra.parameters()]
    x, y, teacher = torch.randn(16, 6).double(), torch.randint(3, (16,)), 5 * torch.randn(16, 3).double()

    def pair():
        features = body(x)
        return cross_entropy(main(features), y), binary_kl_norm(extra(features), -teacher, 2.0)

    task, auxiliary = pair()
    g = [torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in (task, auxiliary)]
    flat = [
        torch.cat([(torch.zeros_like(p) if v is None else v).flatten() for v, p in zip(one, parameters, strict=True)])
        for one in g
    ]
    shared = torch.cat(
        [torch.full((p.numel(),), a is not None and b is not None) for a, b, p in zip(*g, parameters, strict=True)]
    )
    basis = flat[0] * shared if scope == "shared" else flat[0]
    dot = flat[0] @ flat[1]
    if dot >= 0:  # make the case a conflict, or the test shows nothing
        auxiliary, flat[1], dot = -auxiliary, -flat[1], -dot
    expected = flat[0] + flat[1] - dot / (basis @ basis) * basis

    aligned_backward(task, auxiliary, parameters, scope=scope)
    torch.testing.assert_close(torch.cat([p.grad.flatten() for p in parameters]), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("scope", ["all", "shared"])
def test_zero_gradients_of_unreached_parameters_count_as_none(scope):
    """Otherwise a parameter of the task alone would count as shared, and one that no loss reaches would be stepped."""
    found = []
    for zeros in (False, True):
        both, task, none = (torch.tensor([value], requires_grad=True) for value in (1.0, 2.0, 3.0))
        auxiliary = -3 * both.sum() + (0 * (task + none).sum() if zeros else 0)
        reached = [[True, True, False], [True, False, False]] if zeros else None
        aligned_backward((both + 2 * task).sum(), auxiliary, [both, task, none], scope=scope, reached=reached)
        found.append([None if p.grad is None else p.grad.item() for p in (both, task, none)])
    assert found[0] == found[1] and found[1][2] is None


def test_reachable_leaves_are_those_of_a_backward_pass():
    one, other, unused = (torch.ones(2, requires_grad=True) for _ in range(3))
    inner = (one * 2).relu()
    loss = (inner.split(1)[0] * other.detach()).sum() + (inner.split(1)[1] * unused).sum() * 0
    assert (
        reachable_leaf_ids(loss) == {id(one), id(unused)}
        and reachable_leaf_ids(one) == {id(one)}
        and reachable_leaf_ids(other.detach()) == frozenset()
    )
    assert reachable_leaf_ids(loss, {(inner.grad_fn, 0): frozenset({7})}) == {7, id(unused)}


class Operators(TorchDispatchMode):
    """Counts the operators that are called, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("scope", ["all", "shared"])
def test_the_number_of_operators_does_not_grow_with_the_parameters(scope, monkeypatch):
    monkeypatch.setattr(
        gradients,
        "_sum_of_products",
        lambda left, right: gradients._sum_in_few_launches(torch._foreach_mul(left, right)),
    )  # as on CUDA
    counts = []
    for size in (2, 20):
        parameters = [torch.tensor([1.0, -2.0], requires_grad=True) for _ in range(size)]
        task, auxiliary = (sum((parameter * factor).sum() for parameter in parameters) for factor in (1.0, -2.0))
        with Operators() as passes:
            torch.autograd.grad(task, parameters, retain_graph=True)
            torch.autograd.grad(auxiliary, parameters, retain_graph=True)
        with Operators() as whole:
            aligned_backward(task, auxiliary, parameters, scope=scope)
        counts.append(whole.count - passes.count)
        assert parameters[0].grad.tolist() == [1.0, 1.0]  # the conflict is gone, the task is not
    assert counts[0] == counts[1] < 30


def test_the_losses_own_gradients_are_not_overwritten():
    w, v = (torch.tensor([1.0, 2.0], requires_grad=True) for _ in range(2))
    total = (w + v).square().sum()  # one tensor is the gradient of both
    aligned_backward(total, -total, [w, v], scope="all", free=w.sum())
    assert w.grad.tolist() == [5.0, 9.0] and v.grad.tolist() == [4.0, 8.0]


def test_unknown_scope_is_refused():
    w = torch.tensor([1.0], requires_grad=True)
    with pytest.raises(ValueError, match="'all' or 'shared'"):
        aligned_backward(w.sum(), w.sum(), [w], scope="some")


@pytest.mark.parametrize("aligned", [False, True])
def test_a_fused_optimizer_steps_the_right_elements_whatever_the_strides(aligned):
    # a convolution in torch's default layout behind a channels_last map: autograd.grad answers with other strides than
    # the weight's
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(3, 4, 3)
    pixels = torch.randn(2, 3, 6, 6).to(memory_format=torch.channels_last)
    before, losses = conv.weight.detach().clone(), lambda: (conv(pixels).square().mean(), conv(pixels).mean())
    expected = torch.autograd.grad(sum(losses()), [conv.weight])[0]
    assert expected.stride() != conv.weight.stride()
    optimizer = torch.optim.SGD(conv.parameters(), lr=1.0, fused=True)
    if aligned:
        aligned_backward(losses()[0], 0 * losses()[0], list(conv.parameters()), scope="all", free=losses()[1])
    else:
        sum_backward(losses(), list(conv.parameters()), reduce=lambda gradients: None)
    optimizer.step()
    torch.testing.assert_close(conv.weight.detach(), before - expected)


def test_the_cosine_is_over_what_both_losses_reach():
    a, b, c = (torch.tensor(values, requires_grad=True) for values in ([1.0, 0.0], [1.0, 2.0], [3.0]))
    task, other = (a * torch.tensor([3.0, 4.0])).sum() + c.sum(), (a * torch.tensor([-4.0, -3.0])).sum() + b.sum()
    assert cosine(task, other, [a, b, c]).item() == pytest.approx(-24 / 25)
    assert cosine(task, other, [b, c]) is None
    assert cosine(torch.zeros(()), other, [a]) is None  # a stage of a method without its task loss
    assert cosine(task, a.sum() * 0, [a]).item() == 0
    (task + other).backward()  # the graph is still there


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_the_cosine_of_tiny_and_huge_gradients_is_one(scale):
    a = torch.tensor([1.0, 2.0], requires_grad=True)
    assert cosine((a * scale).sum(), a.sum(), [a]).item() == pytest.approx(1.0)
