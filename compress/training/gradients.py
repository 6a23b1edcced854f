"""Gradients of a step: their plain sum, or DHKD's gradient alignment.

Imports nothing from the project.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Averages gradients over processes in place; each call is one message.
Reduce = Callable[[list[Tensor]], None]
# One for each parameter; None where a loss does not reach it.
Gradients = Sequence[Tensor | None]


def sum_backward(losses: Sequence[Tensor], parameters: Sequence[Tensor], *, reduce: Reduce | None = None) -> None:
    """Set `p.grad` to the gradient of the sum of losses, for every parameter that a loss reaches.

    Args:
        losses: scalars.
        parameters: those that get a gradient.
        reduce: averages gradients over processes.
    """
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    if reduce is None:
        torch.autograd.backward(total, inputs=list(parameters))
        return
    found = torch.autograd.grad(total, list(parameters), allow_unused=True)
    reduce([grad for grad in found if grad is not None])
    for p, grad in zip(parameters, found, strict=True):
        if grad is not None:
            _accumulate(p, grad)


def cosine(task: Tensor, other: Tensor, parameters: Sequence[Tensor]) -> Tensor | None:
    """Return the cosine between two losses' gradients; the graph is kept for the step's own backward pass.

    Args:
        task: scalar.
        other: scalar.
        parameters: the cosine is taken over those that both losses reach.

    Returns:
        A scalar, 0 where one of the gradients is 0; None where no parameter is reached by both.
    """
    parameters = list(parameters)
    if not (task.requires_grad and other.requires_grad):
        return None
    pairs = zip(
        *(torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in (task, other)),
        strict=True,
    )
    both = [(t, o) for t, o in pairs if t is not None and o is not None]
    if not both:
        return None
    dot, task2, other2 = (
        torch.stack([(a * b).sum() for a, b in chosen]).sum()
        for chosen in (both, [(t, t) for t, _ in both], [(o, o) for _, o in both])
    )
    return dot / (task2.sqrt() * other2.sqrt()).clamp(min=torch.finfo(dot.dtype).tiny)


def aligned_backward(
    task: Tensor,
    auxiliary: Tensor,
    parameters: Sequence[Tensor],
    *,
    scope: str,
    free: Tensor | None = None,
    reduce: Reduce | None = None,
    reached: Sequence[Sequence[bool]] | None = None,
) -> None:
    """Set `p.grad` to g_task + g_auxiliary (+ g_free), after projecting the auxiliary gradient where the two conflict.

    Where <g_aux, g_task> < 0:  g_aux <- g_aux - <g_aux, g_task> / ||g_task||^2 g_task.  The task's gradient is never
    altered. Works on lists of tensors, without a flattened copy. The losses share one forward pass; each costs a
    backward pass through what it reaches, which for two heads is the backbone and its own head. Never waits for the
    device.

    Source: Yang et al. 2024 (arXiv 2411.08937), gradient alignment; one-directional PCGrad (Yu et al. 2020).

    Args:
        task: scalar, the cross-entropy.
        auxiliary: scalar, the loss to project.
        parameters: everything that the optimizer steps; one that a loss does not reach counts as zero.
        scope: "all": norm and projection run over all parameters, as in the authors' OptimGradAlign; the correction
            then reaches the classifier too. "shared": only over parameters that both losses reach, which is a true
            projection in the backbone.
        free: scalar added without projection, or None.
        reduce: averages gradients over processes, all losses' in one message. The projection is not linear, so it comes
            after this.
        reached: for task, auxiliary and free, whether they reach each parameter; None: as autograd reports it, which
            gives zeros behind a compiled network.

    Raises:
        ValueError: the scope is unknown.
    """
    if scope not in ("all", "shared"):
        raise ValueError(f"scope must be 'all' or 'shared', got {scope!r}")
    parameters = list(parameters)
    reach = [*reached, None][:3] if reached is not None else [None] * 3
    keep = (True, free is not None, False)
    g_task, g_aux, g_free = (
        _gradients(*one, parameters) for one in zip((task, auxiliary, free), reach, keep, strict=True)
    )
    if reduce is not None:
        reduce([grad for grads in (g_task, g_aux, g_free) for grad in grads if grad is not None])

    correction = _correction(g_task, g_aux, scope)
    projected = [t is not None and (scope == "all" or a is not None) for t, a in zip(g_task, g_aux, strict=True)]
    grads: Gradients = g_task
    others: list[Gradients] = [g_aux, g_free]
    # Each list is released when it is added, so that three lists of gradients exist at a time and not four.
    del g_aux, g_free
    while others:
        grads = _sums(grads, others.pop(0))
    if correction is not None:
        corrected = iter(_subtract(g_task, grads, projected, correction))
        grads = [next(corrected) if wanted else grad for grad, wanted in zip(grads, projected, strict=True)]
    for p, grad in zip(parameters, grads, strict=True):
        if grad is not None:
            _accumulate(p, grad)


def _gradients(
    loss: Tensor | None, reached: Sequence[bool] | None, keep: bool, parameters: Sequence[Tensor]
) -> Gradients:
    """Return a loss's gradients, None where it is not `reached`. `keep`: keep the graph for another loss."""
    if loss is None:
        return [None] * len(parameters)
    found = torch.autograd.grad(loss, parameters, retain_graph=keep, allow_unused=True)
    if reached is None:
        return found
    return [gradient if there else None for gradient, there in zip(found, reached, strict=True)]


def _correction(g_task: Gradients, g_aux: Gradients, scope: str) -> Tensor | None:
    """Return min(<g_aux, g_task>, 0) / ||g_task||^2, how much of the task's gradient is subtracted from the sum.

    None where no parameter is reached by both losses.
    """
    both = [(t, a) for t, a in zip(g_task, g_aux, strict=True) if t is not None and a is not None]
    if not both:
        return None
    spread = [t for t, _ in both] if scope == "shared" else [t for t in g_task if t is not None]
    dot = _sum_of_products([t for t, _ in both], [a for _, a in both])
    norm2 = _sum_of_products(spread, spread)
    # Clamping the dot product avoids a branch: nothing is subtracted where the gradients agree or the task's is zero.
    return dot.clamp(max=0) / norm2.clamp(min=torch.finfo(norm2.dtype).tiny)


def _subtract(g_task: Gradients, grads: Gradients, projected: list[bool], correction: Tensor) -> Sequence[Tensor]:
    """Return grad - correction g_task for the projected parameters alone."""
    chosen = [
        (t, grad)
        for t, grad, wanted in zip(g_task, grads, projected, strict=True)
        if wanted and t is not None and grad is not None
    ]
    less = torch._foreach_mul([t for t, _ in chosen], -correction)
    torch._foreach_add_(less, [grad for _, grad in chosen])
    return less


def _sums(one: Gradients, other: Gradients) -> list[Tensor | None]:
    """Add two gradient lists; where only one side has a gradient, return it unchanged."""
    both = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    sums = iter(torch._foreach_add([a for a, _ in both], [b for _, b in both]) if both else ())
    return [b if a is None else a if b is None else next(sums) for a, b in zip(one, other, strict=True)]


def _accumulate(p: Tensor, grad: Tensor) -> None:
    """Add to `p.grad`, laid out in memory as `p` is.

    torch's fused optimizers read both as plain memory. A gradient with other strides (a convolution's, behind a
    channels_last map) would silently step the wrong elements (torch 2.15, SGD, CPU). `backward` takes care of this,
    `autograd.grad` does not.
    """
    if grad.stride() != p.stride():
        grad = torch.empty_like(p).copy_(grad)
    p.grad = grad if p.grad is None else p.grad + grad


def _sum_of_products(left: list[Tensor], right: list[Tensor]) -> Tensor:
    """Return the dot product of two lists of tensors as if each were one vector: a scalar on their device."""
    products = list(torch._foreach_mul(left, right))
    if products[0].is_cuda:
        return _sum_in_few_launches(products)
    return torch.stack([product.sum() for product in products]).sum()


def _sum_in_few_launches(values: list[Tensor]) -> Tensor:
    """Return the sum over all tensors, which are overwritten: a few launches on CUDA, where `sum` needs one per tensor.

    `_foreach_norm` sums magnitudes, so the sum is twice that of the positive parts less that of all magnitudes. Not for
    CPUs: there `_foreach_norm` adds one element after another, 3e-4 off for two million float32 (torch 2.15).
    """
    magnitudes = torch.stack(torch._foreach_norm(values, 1)).sum()
    torch._foreach_clamp_min_(values, 0)
    return 2 * torch.stack(torch._foreach_norm(values, 1)).sum() - magnitudes
