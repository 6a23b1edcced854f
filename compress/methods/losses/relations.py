"""Losses of pooled vectors (N, d) that compare images with each other."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from compress.methods.losses.upcast import upcast


def _squared_distances(e: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Gram matrix (N, N) of the centred rows, and squared distances with an exact 0 on the diagonal.

    No difference (N, N, d) is computed.
    """
    # Distances do not change, and rounding is least near the origin.
    e = e - e.mean(0)
    gram = e @ e.t()
    square = gram.diagonal()[:, None] + gram.diagonal()[None, :] - 2 * gram
    apart = ~torch.eye(len(e), dtype=torch.bool, device=e.device)
    return gram, square.clamp(min=0) * apart


def _root(square: Tensor) -> Tensor:
    """Return the square root, with gradient 0 where the distance is 0 (two equal images, the diagonal)."""
    near = square <= 1e-12
    return square.masked_fill(near, 1.0).sqrt().masked_fill(near, 0.0)


def _relative_distances(e: Tensor) -> Tensor:
    """Return the distances (N, N) divided by the mean of the positive ones."""
    distance = _root(_squared_distances(upcast(e))[1])
    positive = distance > 0
    return distance / (distance.sum() / positive.sum().clamp(min=1)).clamp(min=torch.finfo(distance.dtype).tiny)


def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the smooth L1 between the distances of all pairs, as a mean over N^2 with the diagonal.

    Each network's distances are divided by their mean, so a single pair always gives 0.

    Source: Park et al. 2019 (arXiv 1904.05068), eq. 5 to 7.
    """
    return F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher))


def _angles(e: Tensor) -> Tensor:
    """Return the cosines (N, N, N) of the angle at i between j and k, 0 where a side has no length.

    From the Gram matrix: O(N^2 d + N^3).
    """
    gram, square = _squared_distances(upcast(e))
    distance = _root(square)
    inverse = torch.where(distance > 0, 1 / distance.masked_fill(distance == 0, 1.0), 0.0)
    own = gram.diagonal()
    dots = gram[None, :, :] - gram[:, :, None] - gram[:, None, :] + own[:, None, None]
    return dots * inverse[:, :, None] * inverse[:, None, :]


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the smooth L1 between the cosines at every image towards every pair, as a mean over N^3.

    Source: Park et al. 2019 (arXiv 1904.05068), eq. 8 to 10.
    """
    return F.smooth_l1_loss(_angles(student), _angles(teacher))


def contrastive_nce(scores: Tensor, log_z: Tensor, images: int) -> Tensor:
    """Return CRD's noise-contrastive loss of one side, as a mean over the batch.

    With c = K / n and a = exp(score) / Z it is -(log a_0 / (a_0 + c + 1e-7) + sum_j log c / (a_j + c + 1e-7)), computed
    by logsigmoid, because exp overflows float16 at temperature 0.07.

    Source: Tian et al. 2020 (arXiv 1910.10699), eq. 17 and 18; the 1e-7 is from the authors' code.

    Args:
        scores: (N, 1 + K), dot products over the temperature, the image's own entry first.
        log_z: scalar, the log of Z.
        images: n, rows of the memory.
    """
    scores = upcast(scores)
    share = (scores.shape[1] - 1) / images
    levels = scores - log_z - math.log(share + 1e-7)
    others = F.logsigmoid(-levels[:, 1:]) + (math.log(share) - math.log(share + 1e-7))
    return -(F.logsigmoid(levels[:, 0]) + others.sum(1)).mean()
