"""A network behind its own input contract: it takes the pictures of the recipe and answers in the recipe's classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class InputAdapter(nn.Module):
    """Normalised RGB (N, 3, S, S) -> resized to `size`, red and blue exchanged -> `network` -> its outputs `order` as logits (N, K).

    `size`, `order`: None leaves them as they are. Smaller pictures are made with antialiasing, larger ones bilinearly, both at pixel centres.
    """

    def __init__(self, network: nn.Module, *, size: int | None, bgr: bool, order: tuple[int, ...] | None) -> None:
        super().__init__()
        self.network, self.size, self.bgr = network, size, bgr
        # not persistent: the weights are those of the network alone
        self.register_buffer("order", None if order is None else torch.tensor(order), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N, K)."""
        if self.size is not None and self.size != x.shape[-1]:
            x = functional.interpolate(
                x, size=(self.size, self.size), mode="bilinear", align_corners=False, antialias=self.size < x.shape[-1]
            )
        logits = self.network(x.flip(1) if self.bgr else x)
        return logits if self.order is None else logits.index_select(1, self.order)


def inner_network(model: nn.Module) -> nn.Module:
    """The network itself."""
    return model.network if isinstance(model, InputAdapter) else model
