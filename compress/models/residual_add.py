"""A block's sum as a module, so that what watches modules (training kernels, taps) sees it."""

from __future__ import annotations

from torch import Tensor, nn


class ResidualAdd(nn.Module):
    """What a block computed and what its shortcut kept, added."""

    def forward(self, new: Tensor, kept: Tensor) -> Tensor:
        """Two (N, C, H, W) -> (N, C, H, W)."""
        return new + kept
