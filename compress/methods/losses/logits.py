"""Losses of logits (N, K) and labels (N,) int64."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from compress.methods.losses.upcast import upcast


def cross_entropy(
    logits: Tensor, labels: Tensor, label_smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Return the mean cross-entropy over the labelled images of a batch, 0 where there are none.

    With class weights it is the weighted sum over the number of labelled images, and not, as in torch's
    `CrossEntropyLoss(weight=)`, over the sum of their weights: that one cancels the weight of an image that is alone
    in its batch, and is not the mean of what several ranks compute. With weights whose mean over the training images is
    1, both are the same over all images at once.

    Args:
        logits: (N, K).
        labels: int64 (N,), -1 for an unlabelled image.
        label_smoothing: in [0, 1); with weights, each class of the smoothed target counts with its own, as in torch.
        class_weights: (K,).
    """
    # The mean over no image is NaN. Such a batch gets a label that counts nothing, without waiting for the device.
    some = (labels >= 0).any()
    scores, targets = upcast(logits), torch.where(some, labels, 0)
    if class_weights is None:
        return F.cross_entropy(scores, targets, ignore_index=-1, label_smoothing=label_smoothing) * some
    total = F.cross_entropy(
        scores,
        targets,
        class_weights.to(scores.dtype),
        ignore_index=-1,
        label_smoothing=label_smoothing,
        reduction="sum",
    )
    return total / (labels >= 0).sum().clamp(min=1) * some


def binary_kl_norm(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return tau^2 / N * sum_nk KL( Bern(1/2) || Bern(sigmoid((s - t) / tau)) ), the BinaryKL-Norm of DHKD.

    Closed form: with d = (s - t) / tau each term is ln cosh(d / 2) = |d|/2 + ln(1 + exp(-|d|)) - ln 2. It is finite for
    every finite d and has gradient tau / (2N) tanh(d / 2). The usual sigmoid-clamp-log form is inf in float32 from a
    difference of 34 on.

    Source: Yang et al. 2024 (arXiv 2411.08937), eq. of BinaryKL-Norm.

    Args:
        student: logits (N, K).
        teacher: logits (N, K).
        temperature: tau.
    """
    d = (upcast(student) - upcast(teacher)) / temperature
    # softplus(-|d|) has the exact gradient at 0 too: |d| contributes sign(0) = 0 twice.
    terms = d.abs() / 2 + F.softplus(-d.abs()) - math.log(2)
    return temperature**2 * terms.sum() / d.shape[0]


def binary_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return tau^2 / N * sum_nk KL( Bern(sigmoid(t / tau)) || Bern(sigmoid(s / tau)) ), the ablation's BinaryKL.

    Gradient with respect to s: tau / N (sigmoid(s / tau) - sigmoid(t / tau)).

    Source: Yang et al. 2024 (arXiv 2411.08937), eq. of BinaryKL.

    Args:
        student: logits (N, K).
        teacher: logits (N, K).
        temperature: tau.
    """
    s, t = upcast(student) / temperature, upcast(teacher) / temperature
    terms = torch.sigmoid(t) * (t - s) + F.softplus(s) - F.softplus(t)
    return temperature**2 * terms.sum() / s.shape[0]


def kd_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 / N * sum_n KL( softmax(t / T) || softmax(s / T) ).

    Source: Hinton et al. 2015 (arXiv 1503.02531); mean over the batch, sum over classes.

    Args:
        student: logits (N, K).
        teacher: logits (N, K).
        temperature: T.
    """
    log_s = F.log_softmax(upcast(student) / temperature, dim=1)
    log_t = F.log_softmax(upcast(teacher) / temperature, dim=1)
    return temperature**2 * F.kl_div(log_s, log_t, reduction="sum", log_target=True) / log_s.shape[0]


def standardize_logits(logits: Tensor) -> Tensor:
    """Return the z-score of each image's logits (unbiased deviation + 1e-7), for the softmax of KD.

    Source: Sun et al. 2024 (arXiv 2403.01427), logit standardisation.
    """
    logits = upcast(logits)
    return (logits - logits.mean(dim=1, keepdim=True)) / (logits.std(dim=1, keepdim=True) + 1e-7)


def decoupled_kd(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return DKD's two parts (TCKD, NCKD), each times T^2, as means over the labelled images.

    TCKD is the KL of the two-way distributions (p_y, 1 - p_y); NCKD is the KL over the other classes, renormalised
    among themselves. With u = z_y / T - logsumexp_{j != y}(z_j / T) the first is sigmoid(u_t) (u_t - u_s) +
    softplus(u_s) - softplus(u_t), which is finite where the logarithm of a summed softmax is log 0. With two classes
    NCKD is 0.

    Source: Zhao et al. 2022 (arXiv 2203.08679), eq. 7 and 8.

    Args:
        student: logits (N, K).
        teacher: logits (N, K).
        labels: int64 (N,), -1 for an unlabelled image.
        temperature: T.
    """
    labelled = labels >= 0
    place = labels.clamp(min=0)[:, None]
    target = torch.zeros_like(student, dtype=torch.bool).scatter(1, place, True)
    s, t = upcast(student) / temperature, upcast(teacher) / temperature
    # With a finite mask the target's own share is exactly 0, without the inf - inf of a difference of logarithms.
    others_s, others_t = s.masked_fill(target, -1e30), t.masked_fill(target, -1e30)
    # Gathered and not indexed by the mask: indexing counts the mask's entries, which waits for the device.
    u_s = s.gather(1, place).squeeze(1) - others_s.logsumexp(1)
    u_t = t.gather(1, place).squeeze(1) - others_t.logsumexp(1)
    tckd = torch.sigmoid(u_t) * (u_t - u_s) + F.softplus(u_s) - F.softplus(u_t)
    log_s, log_t = F.log_softmax(others_s, dim=1), F.log_softmax(others_t, dim=1)
    nckd = (log_t.exp() * (log_t - log_s)).masked_fill(target, 0).sum(1)
    count = labelled.sum().clamp(min=1)
    return temperature**2 * (tckd * labelled).sum() / count, temperature**2 * (nckd * labelled).sum() / count


def _one_minus_pearson(a: Tensor, b: Tensor) -> Tensor:
    """Return 1 - the mean over rows of the correlation within a row; 1e-8 is added to the product of the norms."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return 1 - ((a * b).sum(1) / (_norm(a) * _norm(b) + 1e-8)).mean()


def _norm(a: Tensor) -> Tensor:
    """Return the Euclidean norm of rows, with gradient 0 (not NaN) at 0."""
    square = (a * a).sum(1)
    zero = square == 0
    return square.masked_fill(zero, 1.0).sqrt().masked_fill(zero, 0.0)


def dist_relations(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return DIST's two relations (inter, intra) of softened probabilities.

    inter: 1 - correlation over an image's classes. intra: 1 - correlation over a class's images; a single image has
        none,
    and intra is then 0 (the plain formula gives the constant 1).

    Source: Huang et al. 2022 (arXiv 2205.10536), eq. 6 to 9.

    Args:
        student: logits (N, K).
        teacher: logits (N, K).
        temperature: tau.
    """
    p, q = F.softmax(upcast(student) / temperature, dim=1), F.softmax(upcast(teacher) / temperature, dim=1)
    intra = _one_minus_pearson(p.t(), q.t()) if len(p) > 1 else p.new_zeros(())
    return _one_minus_pearson(p, q), intra
