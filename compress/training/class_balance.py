"""Unequal classes: their weights in the cross-entropy, as functions of the recipe and the labels to train on."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import torch
from torch import Tensor

from compress.core.records.training import TrainingData
from compress.core.store import Context
from compress.recipe.schema import ResolvedTrain
from compress.training.evaluation import ImageSet


def class_counts(image_set: ImageSet, classes: int) -> Tensor:
    """Return how many labelled images of each class are trained on, float64 (K,) on the CPU."""
    labels = image_set.labels[image_set.train_index].cpu()
    return torch.bincount(labels[labels >= 0], minlength=classes).double()


def class_weights(train: ResolvedTrain, image_set: ImageSet, classes: Sequence[str]) -> Tensor | None:
    """Return the weight of each class in the cross-entropy, float32 (K,) on the device; None: all count alike.

    balanced: n / (K n_c) with n images, n_c of them of the class, and K classes that have any, as scikit-learn's
    `class_weight="balanced"`. Weights by name are scaled so that their mean over the training images is 1 as well: the
    learning rate keeps its meaning. A class without images has weight 0 under balanced.

    Args:
        train: the resolved settings.
        image_set: that is trained on.
        classes: the names of the K classes.
    """
    setting = train.class_weights
    if setting is None or setting == "none":
        return None
    counts = class_counts(image_set, len(classes))
    if isinstance(setting, dict):
        named = {unicodedata.normalize("NFC", name): value for name, value in setting.items()}
        asked = [named.get(unicodedata.normalize("NFC", name), 1.0) for name in classes]
        weights = torch.tensor(asked, dtype=torch.float64)
    else:
        weights = torch.where(counts > 0, 1 / counts.clamp(min=1), 0.0)
    return (weights * (counts.sum() / (weights * counts).sum())).float().to(image_set.labels.device)


def describe_weights(weights: Tensor, classes: Sequence[str]) -> str:
    """Return a sentence with the smallest and the largest weight."""
    least, most = int(weights.argmin()), int(weights.argmax())
    ends = f"from {float(weights[least]):.3g} ({classes[least]}) to {float(weights[most]):.3g} ({classes[most]})"
    return f"classes weigh {ends} in the cross-entropy"


def weigh_classes(
    title: str, train: ResolvedTrain, image_set: ImageSet, data: TrainingData, context: Context
) -> Tensor | None:
    """Return what each class weighs in the cross-entropy, and print the range; see `class_balance.class_weights`."""
    weights = class_weights(train, image_set, data.classes)
    if weights is not None and context.group.is_main:
        context.console.line(f"{title}: {describe_weights(weights, data.classes)}")
    return weights
