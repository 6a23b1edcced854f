"""What a training on a CPU runs instead of torch's own operators, with the same mathematics."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from torch import nn

from compress.training.kernels import library
from compress.training.kernels.depthwise import reroute
from compress.training.kernels.norm import Off, fuse

TORCH = "torch"


def quicker(student: nn.Module, image_size: int, engine: str, warn: Callable[[str], None]) -> tuple[Off, str]:
    """Let a student on a CPU train quicker -> what puts torch's operators back, and who computes its BatchNorms: the C compiler's name, or "torch".

    Depthwise convolutions always get their quick gradients; BatchNorms get the project's kernels under `train.engine: auto`, where they can be had;
    `warn` is told where they cannot.
    """
    with ExitStack() as undo:
        undo.callback(reroute(student))
        made = library.library() if engine == "auto" else None
        if (
            engine == "auto"
            and made is None
            and any(isinstance(module, nn.BatchNorm2d) for module in student.modules())
        ):
            warn(f"CPU kernels: {library.why_not()}; torch's BatchNorms run, slower")
        if made is not None:
            undo.callback(fuse(student, image_size, made))
        return undo.pop_all().close, TORCH if made is None else made.made_by
