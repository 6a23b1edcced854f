"""Losses of feature maps (N, C, H, W)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from compress.methods.losses.upcast import upcast


def same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return both maps at the smaller of the two sizes; the larger one is pooled by adaptive averaging."""
    side = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    s, t = upcast(student), upcast(teacher)
    return s if s.shape[2:] == side else F.adaptive_avg_pool2d(s, side), t if t.shape[
        2:
    ] == side else F.adaptive_avg_pool2d(t, side)


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference over all elements of two maps of one shape.

    Source: Romero et al. 2015 (arXiv 1412.6550), eq. 3; as a mean, like the distillation benchmarks (and SimKD).
    """
    return F.mse_loss(upcast(student), upcast(teacher))


def attention(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean over N H W of (Q_s - Q_t)^2.

    Q is the mean over channels of squares, flattened and divided by its norm per image. Channels may differ; the larger
    map is pooled to the smaller. A dead map (all 0) gives Q = 0.

    Source: Zagoruyko and Komodakis 2017 (arXiv 1612.03928); squared mean instead of a norm, as in the authors' code.
    """
    q_s, q_t = (F.normalize(map_.pow(2).mean(1).flatten(1), dim=1, eps=1e-12) for map_ in same_size(student, teacher))
    return (q_s - q_t).pow(2).mean()


def margins(gamma: Tensor, beta: Tensor, *, exact: bool = False) -> Tensor:
    """Return E[x | x < 0] per channel for x ~ N(beta, |gamma|), as a BatchNorm describes the map before its ReLU.

    With r = beta / sigma it is beta - sigma phi(r) / Phi(-r), which is negative. Where Phi(-r) <= 1e-3 the authors take
    -3 sigma, which jumps: r = 3 gives -0.28 sigma, r = 3.2 gives -3 sigma. gamma = 0, a division by zero in the
    authors' code, gives min(beta, 0).

    Source: Heo et al. 2019 (arXiv 1904.01866), eq. 4.

    Args:
        gamma: the BatchNorm's weight, (C,).
        beta: its bias, (C,).
        exact: leave the jump out.

    Returns:
        float64 (C,).
    """
    gamma, beta = gamma.double(), beta.double()
    sigma = gamma.abs().clamp(min=1e-12)
    r = beta / sigma
    log_phi = -r * r / 2 - 0.5 * math.log(2 * math.pi)
    margin = beta - sigma * torch.exp(log_phi - torch.special.log_ndtr(-r))
    if not exact:
        margin = torch.where(torch.special.ndtr(-r) > 1e-3, margin, -3 * sigma)
    return torch.where(gamma == 0, beta.clamp(max=0), margin)


def margin_relu(map_: Tensor, margin: Tensor) -> Tensor:
    """Return max(x, m) with a margin (C,) per channel."""
    return torch.maximum(upcast(map_), margin.to(upcast(map_).dtype)[:, None, None])


def partial_l2(student: Tensor, target: Tensor) -> Tensor:
    """Return the sum of (s - t)^2 where t > 0 or s > t, divided by N.

    Where the target is not positive and the student lies below it, there is no loss.

    Source: Heo et al. 2019 (arXiv 1904.01866), eq. 5.
    """
    s, t = upcast(student), upcast(target)
    active = (s > t) | (t > 0)
    return ((s - t).pow(2) * active).sum() / len(s)


def hierarchical_context(student: Tensor, teacher: Tensor) -> Tensor:
    """Return HCL: the mean squared differences of two maps and of their 4x4, 2x2 and 1x1 pools.

    The weights are 1, 1/2, 1/4, 1/8, and the sum is divided by theirs. A pool is used only where it is smaller than the
    map, and the weight is halved only when one is used.

    Source: Chen et al. 2021 (arXiv 2104.09044), section 3.3.
    """
    s, t = upcast(student), upcast(teacher)
    loss, weight, total = F.mse_loss(s, t), 1.0, 1.0
    for side in (4, 2, 1):
        if side < s.shape[2]:
            weight /= 2
            loss = loss + weight * F.mse_loss(F.adaptive_avg_pool2d(s, side), F.adaptive_avg_pool2d(t, side))
            total += weight
    return loss / total


def class_activation(student: Tensor, teacher: Tensor, side: int, *, normalize: bool) -> Tensor:
    """Return the mean squared difference of class activation maps.

    Source: Guo et al. 2023 (CAT-KD, CVPR 2023), eq. 5.

    Args:
        student: (N, K, H, W).
        teacher: (N, K, H', W').
        side: both are pooled to side x side.
        normalize: scale each pooled map to norm 1.
    """
    s, t = (F.adaptive_avg_pool2d(upcast(map_), side).flatten(2) for map_ in (student, teacher))
    if normalize:
        s, t = F.normalize(s, dim=2, eps=1e-12), F.normalize(t, dim=2, eps=1e-12)
    return F.mse_loss(s, t)
