"""Networks by name. `catalog` says what there is without torch; the functions here import torch when they are called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from compress.errors import UsageError
from compress.models import catalog

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Outline:
    """What a distillation method needs to know of a network. `pooled` is a tap, `width` its d in (N, d)."""

    name: str
    pooled: str
    width: int
    classes: int
    linear: str


def build(name: str, *, classes: int, width: float | None = None) -> nn.Module:
    """The network with fresh weights, float32 (N, 3, H, W) -> logits (N, classes); nothing is downloaded.

    Raises UsageError for an unknown name, a width that the network does not take, or fewer than two classes.
    """
    network = catalog.info(name)
    width = catalog.resolve_width(network, width)
    if classes < 2:
        raise UsageError(f"{name}: a classifier needs at least 2 classes, not {classes}; check the class folders of `data`")
    if network.family == "torchvision":
        from compress.models import vision

        return vision.build(network, classes)
    from compress.models.builders import BUILDERS

    return BUILDERS[name](classes=classes) if width is None else BUILDERS[name](classes=classes, width=width)


def pretrained(name: str, weights_name: str, classes: int) -> nn.Module:
    """A torchvision network with its published weights; where the class count differs, the last Linear is fresh.

    Raises UsageError for an unknown network or weights name, MissingError where the weights are neither cached nor downloadable.
    """
    from compress.models import vision
    from compress.models.checkpoints import fit

    network = catalog.info(name)
    state = vision.pretrained_state(network, weights_name)
    model = build(name, classes=classes)
    fit(model, state, source=f"{name} {weights_name}", new_head=True)
    return model


def outline(model: nn.Module, name: str) -> Outline:
    """Read the pooled width and the class count off a built network of that name."""
    from torch import nn

    network = catalog.info(name)
    block, last = model.get_submodule(network.classifier), model.get_submodule(network.linear)
    first = next(module for module in block.modules() if isinstance(module, nn.Linear))
    assert isinstance(last, nn.Linear)  # the catalogue says so; a test builds every entry
    return Outline(name, f"{network.classifier}:in", first.in_features, last.out_features, network.linear)
