"""A network behind an adapter: it takes the recipe's images and returns logits in the recipe's class order."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class InputAdapter(nn.Module):
    """Normalized RGB (N, 3, S, S) -> resize, red and blue exchanged -> `network` -> logits (N, K) in class order.

    Smaller images are made with antialiasing, larger ones bilinearly, both at pixel centres.

    Args:
        network: The network itself.
        size: Side of the images that the network takes; None leaves them as they are.
        bgr: Whether the network takes BGR.
        order: Which of the network's outputs stands for each class; None leaves them as they are.
    """

    order: Tensor | None

    def __init__(self, network: nn.Module, *, size: int | None, bgr: bool, order: tuple[int, ...] | None) -> None:
        super().__init__()
        self.network, self.size, self.bgr = network, size, bgr
        # Not persistent: the state dict holds the network's weights alone.
        self.register_buffer("order", None if order is None else torch.tensor(order), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N, K)."""
        if self.size is not None and self.size != x.shape[-1]:
            x = functional.interpolate(
                x, size=(self.size, self.size), mode="bilinear", align_corners=False, antialias=self.size < x.shape[-1]
            )
        logits: Tensor = self.network(x.flip(1) if self.bgr else x)
        return logits if self.order is None else logits.index_select(1, self.order)


def inner_network(model: nn.Module) -> nn.Module:
    """Return the network inside an adapter, else the model itself."""
    return model.network if isinstance(model, InputAdapter) else model
