"""Faster CPU operators for training, with the same mathematics as torch's own. See README.md in this folder."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from torch import nn

from compress.training.kernels.depthwise import use_fast_gradients
from compress.training.kernels.library import load_kernels, unavailable_reason
from compress.training.kernels.norm import fuse_batch_norms

TORCH = "torch"


def use_fast_kernels(
    student: nn.Module, image_size: int, engine: str, warn: Callable[[str], None]
) -> tuple[Callable[[], None], str]:
    """Make a student on a CPU train faster.

    Depthwise convolutions always get their fast gradients. BatchNorms get the C kernels under `train.engine: auto`,
    where they can be compiled.

    Args:
        student: the network, on the CPU.
        image_size: side of its input in pixels.
        engine: `train.engine`.
        warn: called where the C kernels are unavailable.

    Returns:
        What puts torch's operators back, and who computes BatchNorms: the C compiler's name, or "torch".
    """
    with ExitStack() as undo:
        undo.callback(use_fast_gradients(student))
        kernels = load_kernels() if engine == "auto" else None
        if kernels is not None:
            undo.callback(fuse_batch_norms(student, image_size, kernels))
        elif engine == "auto" and any(isinstance(module, nn.BatchNorm2d) for module in student.modules()):
            warn(f"CPU kernels: {unavailable_reason()}; torch's BatchNorms run, slower")
        return undo.pop_all().close, TORCH if kernels is None else kernels.compiler
