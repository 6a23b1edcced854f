"""Networks by name. `catalog` says what there is without torch; the functions here import torch when they are called."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compress.core.errors import UsageError
from compress.models import catalog

if TYPE_CHECKING:
    from torch import nn


def build(name: str, *, classes: int, width: float | None = None) -> nn.Module:
    """The network with fresh weights, float32 (N, 3, H, W) -> logits (N, classes); nothing is downloaded.

    Raises UsageError for an unknown name, a width that the network does not take, or fewer than two classes.
    """
    network = catalog.info(name)
    width = catalog.resolve_width(network, width)
    if classes < 2:
        raise UsageError(
            f"{name}: a classifier needs at least 2 classes, not {classes}; check the class folders of `data`"
        )
    if network.family == "torchvision":
        from compress.models import torchvision_models

        return torchvision_models.build(network, classes)
    if network.family == "own":
        from compress.models import custom

        return custom.build(name, classes)
    from compress.models.registry import BUILDERS

    return BUILDERS[name](classes=classes) if width is None else BUILDERS[name](classes=classes, width=width)


def pretrained(name: str, weights_name: str, classes: int) -> nn.Module:
    """A torchvision network with its published weights; where the class count differs, the last Linear is fresh.

    Raises UsageError for an unknown network or weights name, MissingError where the weights are neither cached nor downloadable.
    """
    from compress.models import torchvision_models
    from compress.models.checkpoints import load_state

    network = catalog.info(name)
    state = torchvision_models.pretrained_state(network, weights_name)
    model = build(name, classes=classes)
    load_state(model, state, source=f"{name} {weights_name}", new_head=True)
    return model
