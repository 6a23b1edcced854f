"""Distillation methods: from signals to named losses.

A method owns its extra modules (DHKD's auxiliary head): they train with the student, live in the method's state, and never ship.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from compress.methods.base import Method, Shape, Signals
from compress.methods.dhkd import DHKD
from compress.methods.kd import KD
from compress.methods.plain import Plain
from compress.schema import Distill

METHODS: Mapping[str, type[Method]] = {"dhkd": DHKD, "kd": KD, "none": Plain}

__all__ = ["METHODS", "Method", "Shape", "Signals", "build_method"]


def build_method(distill: Distill, *, student: Shape, teacher: Shape | None, train_labels: Tensor, label_smoothing: float = 0.0) -> Method:
    """The method that a recipe's `distill` section selects, with its fresh extra modules."""
    kind = METHODS[distill.method]
    return kind(distill.settings, student=student, teacher=teacher, train_labels=train_labels, label_smoothing=label_smoothing)
