"""What a finished training is held against: the accuracy that it has with the statistics of each batch."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from compress.core.records.training import Normalization
from compress.core.records.training_checks import TrainingChecks
from compress.recipe.schema import ResolvedTrain
from compress.training import batch_norm, schedule
from compress.training.evaluation import ImageSet, predict
from compress.training.linear_probe import LinearProbe


def check_training(
    network: nn.Module,
    image_set: ImageSet,
    normalization: Normalization,
    train: ResolvedTrain,
    steps: int,
    probe: LinearProbe | None = None,
) -> TrainingChecks | None:
    """Compare the network that ships with itself as training computes it, on the validation images.

    Args:
        network: the network that ships, on the device, after training.
        image_set: that it was trained on.
        normalization: the network's.
        train: the resolved settings.
        steps: that were taken.
        probe: the last layer that training started from, where one was fitted.

    Returns:
        What was found; None without validation images.
    """
    index, device = image_set.validation_index, image_set.labels.device
    if not len(index):
        return None
    labels, images = image_set.labels[index], image_set.validation()
    right = _right(predict(network, images, image_set.image_size, normalization, device=device), labels)
    layers = batch_norm.tracked_layers(network)
    found = TrainingChecks(len(index), int(right.sum()), steps, train.batch_norm or "running")
    if probe is not None:
        found = replace(found, probe_right=probe.right, probe_images=probe.images, probe_penalty=probe.penalty)
    if not layers:
        return found
    mean, std = (torch.tensor(values, device=device) for values in (normalization.mean, normalization.std))
    order = schedule.order(torch.arange(len(index)), train.seed, 0)
    by_batch = _right(batch_norm.predict_by_batch(network, images, order, image_set.image_size, mean, std), labels)
    return replace(
        found,
        lost=int((by_batch & ~right).sum()),
        gained=int((right & ~by_batch).sum()),
        momentum=min((layer.momentum for layer in layers if layer.momentum is not None), default=None),
    )


def _right(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.argmax(dim=1) == labels
