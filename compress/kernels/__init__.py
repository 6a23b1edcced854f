"""What a training on a CPU runs instead of torch's own operators, with the same mathematics: nothing here changes what is computed, only how fast."""

from __future__ import annotations

from torch import nn

from compress.kernels import library
from compress.kernels.depthwise import reroute
from compress.kernels.norm import Off, fuse

TORCH = "torch"


def quicker(student: nn.Module, image_size: int, engine: str) -> tuple[Off, str]:
    """Let a student on a CPU train quicker -> what puts torch's operators back, and who computes its BatchNorms: the C compiler's name, or "torch".

    Depthwise convolutions always get their quick gradients; BatchNorms get the project's kernels under `train.engine: auto`, where they can be had.
    """
    depthwise_off = reroute(student)
    made = library.library() if engine == "auto" else None
    if made is None:
        return depthwise_off, TORCH
    fused_off = fuse(student, image_size, made)

    def off() -> None:
        fused_off()
        depthwise_off()

    return off, made.made_by
