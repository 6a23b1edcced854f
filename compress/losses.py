"""Losses: pure functions, one formula each, closed forms in float32 (float64 inputs stay float64). Imports nothing of the project.

Shapes: logits (N, K), labels (N,) int64; every loss is a scalar. The teacher's side never carries a gradient: callers detach.
Half-precision inputs are raised to float32 first, because exp, squares and small differences do not survive bf16 or fp16.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def _wide(value: Tensor) -> Tensor:
    """float64 stays (golden tests), everything else becomes float32."""
    return value if value.dtype == torch.float64 else value.float()


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over the batch; pictures with label -1 (unlabelled) are ignored."""
    return F.cross_entropy(_wide(logits), labels, ignore_index=-1, label_smoothing=label_smoothing)


def binary_kl_norm(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """tau^2 / N * sum_nk KL( Bern(1/2) || Bern(sigmoid((s - t) / tau)) ), the BinaryKL-Norm of DHKD.

    Closed form: with d = (s - t) / tau each term is ln cosh(d / 2) = |d|/2 + ln(1 + exp(-|d|)) - ln 2, finite for every finite d
    and with gradient tau / (2N) tanh(d / 2). The usual sigmoid-clamp-log form is inf in float32 from a difference of 34 on.

    Source: Yang et al. 2024 (arXiv 2411.08937), eq. of BinaryKL-Norm.
    """
    d = (_wide(student) - _wide(teacher)) / temperature
    # softplus(-|d|) has the exact gradient at 0 too: |d| contributes sign(0) = 0 twice.
    terms = d.abs() / 2 + F.softplus(-d.abs()) - math.log(2)
    return temperature**2 * terms.sum() / d.shape[0]


def binary_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """tau^2 / N * sum_nk KL( Bern(sigmoid(t / tau)) || Bern(sigmoid(s / tau)) ), the un-normalised BinaryKL of the ablation.

    Gradient with respect to s: tau / N (sigmoid(s / tau) - sigmoid(t / tau)).

    Source: Yang et al. 2024 (arXiv 2411.08937), eq. of BinaryKL.
    """
    s, t = _wide(student) / temperature, _wide(teacher) / temperature
    terms = torch.sigmoid(t) * (t - s) + F.softplus(s) - F.softplus(t)
    return temperature**2 * terms.sum() / s.shape[0]


def kd_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 / N * sum_n KL( softmax(t / T) || softmax(s / T) ).

    Source: Hinton et al. 2015 (arXiv 1503.02531); mean over the batch, sum over classes.
    """
    log_s = F.log_softmax(_wide(student) / temperature, dim=1)
    log_t = F.log_softmax(_wide(teacher) / temperature, dim=1)
    return temperature**2 * F.kl_div(log_s, log_t, reduction="sum", log_target=True) / log_s.shape[0]


def standardize_logits(logits: Tensor) -> Tensor:
    """z-score of each picture's logits (unbiased deviation + 1e-7), before the softmax of KD.

    Source: Sun et al. 2024 (arXiv 2403.01427), logit standardisation.
    """
    logits = _wide(logits)
    return (logits - logits.mean(dim=1, keepdim=True)) / (logits.std(dim=1, keepdim=True) + 1e-7)
