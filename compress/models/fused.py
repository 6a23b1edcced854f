"""Networks that train several branches side by side, such as RepViT, fused into the single branch that ships.

The idea is RepVGG's (Ding et al. 2021): a convolution, a 1x1 convolution and a shortcut, each with its BatchNorm, are
together one convolution, once the statistics are fixed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

NOISE_IMAGES = 4
# Largest difference of logits between the two forms, as a share of the largest |logit| above 1. The logits are computed
# in float64, but the fused weights are rounded to float32, layer after layer. A wrong fusion moves logits by far more.
FUSING_LIMIT = 1e-4
# Methods without arguments that fuse a module in place. timm's modules also have `fuse`, which returns another module;
# elsewhere that name means anything.
IN_PLACE = ("reparameterize", "switch_to_deploy")


@dataclass(frozen=True)
class Fused:
    """What came of fusing a network.

    Attributes:
        network: The fused copy; the network itself, if there is nothing to fuse or the copy gives other answers.
        modules: How many modules can be fused.
        difference: Largest difference of logits, in float64 on noise; None if a module could not be fused.
        limit: What the difference may be.
        kept: Whether `network` is the copy.
    """

    network: nn.Module
    modules: int
    difference: float | None = None
    limit: float = 0.0
    kept: bool = False


@torch.no_grad()
def fused(model: nn.Module, image_size: int) -> Fused:
    """Fuse the branches of a network on a copy, and check that the answers stay.

    Args:
        model: The network in evaluation mode; it stays as it is.
        image_size: Side of the images in pixels.
    """
    modules = sum(_fuser(module) is not None for module in model.modules() if module is not model)
    if not modules:
        return Fused(model, 0)
    twin = copy.deepcopy(model)
    try:
        _fuse_children(twin)
        twin.eval()  # new layers begin in training mode
        difference, largest = _difference(model, twin, image_size)
    except Exception:  # code of another package; what is not fused computes the same, only slower
        return Fused(model, modules)
    limit = FUSING_LIMIT * max(1.0, largest)
    kept = difference <= limit
    return Fused(twin if kept else model, modules, difference, limit, kept)


def _fuser(module: nn.Module) -> Callable[[], Any] | None:
    """Return the method that fuses a module; None if it has none."""
    names = ("fuse", *IN_PLACE) if type(module).__module__.startswith("timm.") else IN_PLACE
    found: Callable[[], Any] | None = next(
        (method for name in names if callable(method := getattr(module, name, None))), None
    )
    return found


def _fuse_children(module: nn.Module) -> None:
    """Fuse every module below this one, outer ones first."""
    for name, child in module.named_children():
        fuse = _fuser(child)
        result = None if fuse is None else fuse()
        if isinstance(result, nn.Module) and result is not child:
            setattr(module, name, result)
        else:
            _fuse_children(child)


def _difference(model: nn.Module, twin: nn.Module, image_size: int) -> tuple[float, float]:
    """Return the largest difference of the logits of two networks on noise, in float64, and the largest |logit|."""
    noise = torch.randn(
        NOISE_IMAGES, 3, image_size, image_size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    wanted, got = (copy.deepcopy(one).cpu().double().eval()(noise) for one in (model, twin))
    return float((wanted - got).abs().max()), float(wanted.abs().max())
