"""Distillation methods: from signals to named losses.

A method owns its extra modules, such as DHKD's auxiliary head. They train with the student, are part of the method's
state, and never ship.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from compress.methods.at import AT
from compress.methods.base import Method, MethodContext, Signals
from compress.methods.catkd import CATKD
from compress.methods.combined import Combined
from compress.methods.crd import CRD
from compress.methods.cross_entropy import CrossEntropy
from compress.methods.dhkd import DHKD
from compress.methods.dist import DIST
from compress.methods.dkd import DKD
from compress.methods.fitnet import FitNet
from compress.methods.kd import KD
from compress.methods.ofd import OFD
from compress.methods.reviewkd import ReviewKD
from compress.methods.rkd import RKD
from compress.methods.simkd import SimKD
from compress.models.outline import Outline
from compress.recipe.schema import Distill

METHODS: Mapping[str, type[Method]] = {
    "dhkd": DHKD,
    "kd": KD,
    "dkd": DKD,
    "dist": DIST,
    "fitnet": FitNet,
    "at": AT,
    "rkd": RKD,
    "crd": CRD,
    "ofd": OFD,
    "reviewkd": ReviewKD,
    "simkd": SimKD,
    "catkd": CATKD,
    "none": CrossEntropy,
}

__all__ = ["METHODS", "Method", "MethodContext", "Outline", "Signals", "build_method"]


def build_method(
    distill: Distill,
    *,
    student: Outline,
    teacher: Outline | None,
    train_labels: Tensor,
    train_index: Tensor | None = None,
    label_smoothing: float = 0.0,
    seed: int = 0,
    class_weights: Tensor | None = None,
) -> Method:
    """Build the method of a recipe's `distill` section, with fresh extra modules; several methods become their sum.

    Args:
        distill: the section.
        student: what the method may know of the student.
        teacher: and of the teacher, None without one.
        train_labels: int64 (P,) of all images, -1 for an unlabelled one.
        train_index: int64 (M,), the images that are trained on; None: all.
        label_smoothing: of the task loss.
        seed: of the training.
        class_weights: of the task loss, float32 (K,); None: all classes count alike.

    Raises:
        UsageError: method and networks do not fit; the message says why.
    """
    index = torch.arange(len(train_labels), device=train_labels.device) if train_index is None else train_index
    context = MethodContext(student, teacher, train_labels, index, label_smoothing, seed, class_weights)
    kinds = [(name, METHODS[name], distill.settings(name)) for name in distill.method]
    return kinds[0][1](kinds[0][2], context) if len(kinds) == 1 else Combined(kinds, context)
