"""Unequal classes: their weights in the cross-entropy and their share of an epoch, from the recipe and the labels."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import torch
from torch import Tensor

from compress.core.plural import plural
from compress.core.records.training import TrainingData
from compress.core.store import Context
from compress.recipe.schema import ResolvedTrain
from compress.training.evaluation import ImageSet


def class_counts(image_set: ImageSet, classes: int) -> Tensor:
    """Return how many labelled images of each class are trained on, float64 (K,) on the CPU."""
    labels = image_set.labels[image_set.train_index].cpu()
    return torch.bincount(labels[labels >= 0], minlength=classes).double()


def class_shares(train: ResolvedTrain, counts: Tensor) -> Tensor:
    """Return each class's share of the labelled images that an epoch shows, (K,). `counts`: see `class_counts`."""
    drawn = (counts > 0).double() if train.sampling == "balanced" else counts
    return drawn / drawn.sum()


def class_weights(train: ResolvedTrain, image_set: ImageSet, classes: Sequence[str]) -> Tensor | None:
    """Return the weight of each class in the cross-entropy, float32 (K,) on the device; None: all count alike.

    balanced: n / (K n_c) with n images, n_c of them of the class, and K classes that have any, as scikit-learn's
    `class_weight="balanced"`. Weights by name are scaled so that their mean over the images of an epoch is 1 as well:
    the learning rate keeps its meaning. A class without images has weight 0 under balanced.

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
    return (weights / (weights * class_shares(train, counts)).sum()).float().to(image_set.labels.device)


def probe_weights(train: ResolvedTrain, image_set: ImageSet, classes: Sequence[str]) -> Tensor | None:
    """Return the weights with which a linear probe sees each image once and minimises what training does.

    They are those of `class_weights`, times how often the sampling shows an image of the class.

    Args:
        train: the resolved settings.
        image_set: that is trained on.
        classes: the names of the K classes.
    """
    weights = class_weights(train, image_set, classes)
    if train.sampling != "balanced":
        return weights
    counts = class_counts(image_set, len(classes))
    often = class_shares(train, counts) / (counts.clamp(min=1) / counts.sum())
    often = often.float().to(image_set.labels.device)
    return often if weights is None else weights * often


def describe_weights(weights: Tensor, classes: Sequence[str]) -> str:
    """Return a sentence with the smallest and the largest weight."""
    least, most = int(weights.argmin()), int(weights.argmax())
    ends = f"from {float(weights[least]):.3g} ({classes[least]}) to {float(weights[most]):.3g} ({classes[most]})"
    return f"classes weigh {ends} in the cross-entropy"


def describe_sampling(counts: Tensor, classes: Sequence[str]) -> str:
    """Return a sentence on how often balanced sampling shows a class and the images of the rarest one."""
    present = torch.nonzero(counts > 0).squeeze(1)
    rarest = int(present[counts[present].argmin()])
    each = float(counts.sum()) / len(present)
    of_rarest = f"the {plural(int(counts[rarest]), 'image')} of {classes[rarest]}"
    return f"an epoch shows each class {each:,.0f} times, {of_rarest} {each / float(counts[rarest]):.3g} times each"


def weigh_classes(
    title: str, train: ResolvedTrain, image_set: ImageSet, data: TrainingData, context: Context
) -> Tensor | None:
    """Return `class_weights`, and print what the recipe does about unequal classes.

    Args:
        title: the network's name.
        train: the resolved settings.
        image_set: that is trained on.
        data: names the classes.
        context: the stage's console and processes.
    """
    weights = class_weights(train, image_set, data.classes)
    if not context.group.is_main:
        return weights
    if weights is not None:
        context.console.line(f"{title}: {describe_weights(weights, data.classes)}")
    if train.sampling == "balanced":
        counts = class_counts(image_set, len(data.classes))
        context.console.line(f"{title}: {describe_sampling(counts, data.classes)}")
    return weights
