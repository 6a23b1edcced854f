"""A step whose network is compiled by torch.compile; losses, gradients, alignment and optimizer stay as they are."""

from __future__ import annotations

import subprocess
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from compress.models.taps import Tapped
from compress.training.engine.autograd_reach import ReachableParameters, reachable_leaf_ids
from compress.training.engine.recorder import failure_reason
from compress.training.step import Step

BACKEND = "inductor"
# Settings of inductor that put the casts of weights and the counters of batches into few launches.
COMBO_KERNEL_SETTINGS = ("combo_kernels", "combo_kernels_pointwise_only")


def compile_step(step: Step, size: int, classifier: nn.Module | None, warn: Callable[[str], None]) -> Step | None:
    """Return the step with its network compiled, or None after a warning where that is impossible.

    The network is tried with two backward passes before it is used. Its buffers and torch's random state are put back.
    `release_compiled` undoes the compilation.

    Args:
        step: runs a `Tapped` network.
        size: images per batch.
        classifier: is not compiled, because gradient alignment needs to know what both losses reach.
        warn: called with the reason.
    """
    if classifier is None:
        warn("train.engine: the student cannot be compiled here (its classifier is not known apart); it runs as it is")
        return None
    assert isinstance(step.network, Tapped)
    buffers = [(value, value.clone()) for value in step.network.model.buffers()]
    # As every epoch does: a network compiled in evaluation mode would be compiled again.
    step.network.model.train()
    fast: Step | None = None
    try:
        with (
            torch.random.fork_rng(devices=[step.labels.device] if step.labels.is_cuda else []),
            warnings.catch_warnings(),
            _combo_kernels(),
        ):
            # The compiler warns about code that it generated itself.
            warnings.simplefilter("ignore")
            leaves = [reachable_leaf_ids(value) for value in _outputs(step, min(size, 2))]
            reach = ReachableParameters(step.parameters, leaves)
            # Two backward passes go through one graph.
            _functorch_settings().donated_buffer = False
            classifier.forward = torch.compiler.disable(classifier.forward)  # type: ignore[no-untyped-call]
            network = torch.compile(step.network.__call__, backend=BACKEND, dynamic=False)
            fast = replace(step, network=network, reach=reach)
            for value in _outputs(fast, size):
                torch.autograd.grad(value.float().sum(), step.parameters, retain_graph=True, allow_unused=True)
            return fast
    # SubprocessError: the first launch of a kernel may run a C compiler.
    except (RuntimeError, ImportError, OSError, subprocess.SubprocessError) as error:
        why = failure_reason(error)
    finally:
        for value, before in buffers:
            value.copy_(before)
    # Drop what the failed step holds on the device.
    fast = None
    release_compiled(classifier)
    warn(f"train.engine: the student cannot be compiled here ({why}); it runs as it is")
    return None


def _outputs(step: Step, size: int) -> list[Tensor]:
    """Return logits and taps for black images."""
    shape = (size, step.image_size, step.image_size, 3)
    logits, taps = step.student(torch.zeros(shape, dtype=torch.uint8, device=step.labels.device))
    return [logits, *taps.values()]


def _combo_kernels() -> AbstractContextManager[Any]:
    import torch._inductor.config as settings

    patch: AbstractContextManager[Any] = settings.patch(
        {name: True for name in COMBO_KERNEL_SETTINGS if hasattr(settings, name)}
    )
    return patch


def _functorch_settings() -> Any:
    import torch._functorch.config as settings

    return settings


def release_compiled(classifier: nn.Module | None) -> None:
    """Undo a compilation: the classifier is as before, for whoever exports or copies it, and the code is dropped.

    torch keeps compiled code as long as the process lives, and after a few networks it compiles no further one.
    """
    if classifier is not None and classifier.__dict__.pop("forward", None) is not None:
        _functorch_settings().donated_buffer = True
        torch.compiler.reset()
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.empty_cache()
