"""The losses' formulas: one pure function each, with its source.

Every loss is a scalar. The teacher's side carries no gradient: callers detach it. Half-precision inputs are upcast to
float32 first, because exp, squares and small differences do not survive bf16 or fp16; float64 stays, for tests.
"""

from compress.methods.losses.features import (
    attention,
    class_activation,
    hierarchical_context,
    hint,
    margin_relu,
    margins,
    partial_l2,
    same_size,
)
from compress.methods.losses.logits import (
    binary_kl,
    binary_kl_norm,
    cross_entropy,
    decoupled_kd,
    dist_relations,
    kd_kl,
    standardize_logits,
)
from compress.methods.losses.relations import contrastive_nce, rkd_angle, rkd_distance

__all__ = [
    "attention",
    "binary_kl",
    "binary_kl_norm",
    "class_activation",
    "contrastive_nce",
    "cross_entropy",
    "decoupled_kd",
    "dist_relations",
    "hierarchical_context",
    "hint",
    "kd_kl",
    "margin_relu",
    "margins",
    "partial_l2",
    "rkd_angle",
    "rkd_distance",
    "same_size",
    "standardize_logits",
]
