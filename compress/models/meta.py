"""Networks without weights, where only shapes are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from compress.models import build, catalog

# torch's initializers that a TorchFunctionMode sees; the others end in one of these tensor methods.
_FILLING = (nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_, torch.Tensor.normal_, torch.Tensor.uniform_)


class _SkipInitialisation(TorchFunctionMode):
    """A mode that skips random initialization; torch offers no other way to skip it."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FILLING:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def meta_device() -> Iterator[None]:
    """Build networks on the meta device, with shapes but no values.

    Initialization is skipped: torch 2.15 runs `normal_` on the meta device through a Python reference that imports
    torch._dynamo and sympy, which takes longer than everything else in `compress check`.
    """
    with torch.device("meta"), _SkipInitialisation():
        yield


@torch.no_grad()
def shapes_only(name: str, *, classes: int, width: float | None, image_size: int | None = None) -> nn.Module:
    """Build a network in evaluation mode to be run for its shapes, on the device of its parameters.

    No random number is drawn. The project's own networks are zeros on the CPU, because on the meta device even a
    convolution imports torch's compiler. The others stay on the meta device, where they cost no memory.

    Args:
        name: See `models.build`.
        classes: Number of classes.
        width: Width multiplier; None for the network's default.
        image_size: Side of the images in pixels; see `models.build`.
    """
    if catalog.info(name).family in ("torchvision", "timm", "own"):
        with meta_device():
            return build(name, classes=classes, width=width, image_size=image_size).eval()
    with _SkipInitialisation():
        model = build(name, classes=classes, width=width).eval()
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.zero_()
    return model
