"""Networks without weights, for what only asks for shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from compress.models import build, catalog

# torch's initialisations that hand themselves to a mode, which does not see what they call; the others end in a tensor's own methods
_FILLING = (nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_, torch.Tensor.normal_, torch.Tensor.uniform_)


class _SkipInitialisation(TorchFunctionMode):
    """Leaves random initialisation out; torch gives no other way to leave it out."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FILLING:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def meta_device() -> Iterator[None]:
    """What is made inside stands on the meta device: shapes, no values.

    Nothing is initialised: torch 2.15 runs `normal_` there through a Python reference that imports torch._dynamo and sympy, which takes longer than
    everything else that `compress check` does.
    """
    with torch.device("meta"), _SkipInitialisation():
        yield


@torch.no_grad()
def shapes_only(name: str, *, classes: int, width: float | None) -> nn.Module:
    """A network of the catalogue in evaluation mode, to be run for its shapes on the device of its parameters; draws no random number.

    The project's own networks have zeros on the CPU: on the meta device a convolution, too, imports that compiler. Larger ones stay there, where they
    cost no memory: torchvision imports the compiler itself.
    """
    if catalog.info(name).family in ("torchvision", "own"):
        with meta_device():
            return build(name, classes=classes, width=width).eval()
    with _SkipInitialisation():
        model = build(name, classes=classes, width=width).eval()
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.zero_()
    return model
