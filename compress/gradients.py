"""Two losses, one step: the plain sum, or the auxiliary gradient projected where it opposes the task's. Imports nothing of the project."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def sum_backward(losses: Sequence[Tensor], parameters: Sequence[Tensor]) -> None:
    """Add d(sum of losses)/dp into `p.grad` of every parameter."""
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    total.backward(inputs=list(parameters))


def aligned_backward(task: Tensor, auxiliary: Tensor, parameters: Sequence[Tensor], *, scope: str, free: Tensor | None = None) -> None:
    """Set `p.grad` to g_task + g_auxiliary (+ g_free), the auxiliary gradient first projected where the two conflict.

    Where <g_aux, g_task> < 0:  g_aux <- g_aux - <g_aux, g_task> / ||g_task||^2 g_task.  The task's gradient is never altered.
    Works on lists of tensors: no flattened copy is made, and the two losses share one forward pass.

    Args:
        task: scalar, the cross-entropy. auxiliary: scalar, the loss to project. free: scalar added unprojected, or None.
        parameters: everything that the optimizer steps; a parameter that a loss does not reach counts as zero.
        scope: "all", the norm and the projection run over all parameters, as the authors' OptimGradAlign does (the correction then
            also reaches the classifier); "shared", only over parameters that both losses reach: a true projection in the backbone.

    Source: Yang et al. 2024 (arXiv 2411.08937), gradient alignment; one-directional PCGrad (Yu et al. 2020).
    """
    if scope not in ("all", "shared"):
        raise ValueError(f"scope must be 'all' or 'shared', got {scope!r}")
    parameters = list(parameters)
    g_task = torch.autograd.grad(task, parameters, retain_graph=True, allow_unused=True)
    g_aux = torch.autograd.grad(auxiliary, parameters, retain_graph=free is not None, allow_unused=True)
    g_free = torch.autograd.grad(free, parameters, allow_unused=True) if free is not None else (None,) * len(parameters)

    both = [(t, a) for t, a in zip(g_task, g_aux, strict=True) if t is not None and a is not None]
    if both:
        dot = torch.stack([(t * a).sum() for t, a in both]).sum()
        spread = [t for t, _ in both] if scope == "shared" else [t for t in g_task if t is not None]
        norm2 = torch.stack([(t * t).sum() for t in spread]).sum()
        # A clamped dot keeps the step free of a branch: nothing to remove where the gradients agree (or the task's is zero).
        correction = dot.clamp(max=0) / norm2.clamp(min=torch.finfo(norm2.dtype).tiny)
    for p, t, a, f in zip(parameters, g_task, g_aux, g_free, strict=True):
        parts = [g for g in (t, a, f) if g is not None]
        if not parts:
            continue
        grad = parts[0].clone()
        for part in parts[1:]:
            grad += part
        if both and t is not None and (scope == "all" or a is not None):
            grad -= correction * t
        p.grad = grad if p.grad is None else p.grad + grad
