"""Networks by name. `catalog` lists them without torch; the functions here import torch when they are called."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compress.core.errors import UsageError
from compress.models import catalog

if TYPE_CHECKING:
    from torch import nn


def build(name: str, *, classes: int, width: float | None = None, image_size: int | None = None) -> nn.Module:
    """Build a network with fresh weights, float32 (N, 3, H, W) -> logits (N, classes); nothing is downloaded.

    Args:
        name: A name of the catalogue, `timm/NAME`, or `package.module:function`.
        classes: Number of classes, at least 2.
        width: Width multiplier; None for the network's default.
        image_size: Side of the images in pixels, for networks that are built for one; None for their own.

    Raises:
        MissingError: The network is timm's, which is not installed.
        UsageError: The name is unknown, the network does not take the width, or there are fewer than two classes.
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
    if network.family == "timm":
        from compress.models import timm_models

        return timm_models.build(name, classes, image_size)
    if network.family == "own":
        from compress.models import custom

        return custom.build(name, classes)
    from compress.models.registry import BUILDERS

    return BUILDERS[name](classes=classes) if width is None else BUILDERS[name](classes=classes, width=width)


def pretrained(
    name: str, weights_name: str, classes: int, image_size: int | None = None
) -> tuple[nn.Module, tuple[str, ...]]:
    """Build a network of torchvision or timm with published weights; for another class count its last layer is fresh.

    Args:
        name: A torchvision network of the catalogue, or `timm/NAME`.
        weights_name: torchvision's or timm's name of the weights, such as "IMAGENET1K_V2".
        classes: Number of classes.
        image_size: See `build`.

    Returns:
        The network, and the keys that keep their fresh initialization.

    Raises:
        UsageError: The network or the weights name is unknown.
        MissingError: The weights are neither cached nor can they be downloaded.
    """
    if catalog.is_timm(name):
        from compress.models import timm_models

        return timm_models.pretrained(name, weights_name, classes, image_size)
    from compress.models import torchvision_models
    from compress.models.checkpoints import load_state

    network = catalog.info(name)
    state = torchvision_models.pretrained_state(network, weights_name)
    model = build(name, classes=classes)
    return model, load_state(model, state, source=f"{name} {weights_name}", new_head=True)
