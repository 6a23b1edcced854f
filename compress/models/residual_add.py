"""The sum at the end of a residual block, as a module, so that training kernels and taps can see it."""

from __future__ import annotations

from torch import Tensor, nn


class ResidualAdd(nn.Module):
    """The sum of a block's branch and its shortcut."""

    def forward(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        """Add two (N, C, H, W)."""
        return branch + shortcut
