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
from compress.training.engine.recorder import reason
from compress.training.step import Step

BACKEND = "inductor"
COMBINED = (
    "combo_kernels",
    "combo_kernels_pointwise_only",
)  # inductor's settings: casts of weights and counters of batches in few launches


def compiled(step: Step, size: int, classifier: nn.Module | None, warn: Callable[[str], None]) -> Step | None:
    """The step with its network compiled for batches of `size`; None, after a word to `warn`, where that is impossible.

    The classifier stays as it is: the alignment counts what both losses reach. The network is tried before it is used, with two backward passes;
    its buffers and torch's random state are put back. `release` ends it.
    """
    if classifier is None:
        warn("train.engine: the student cannot be compiled here (its classifier is not known apart); it runs as it is")
        return None
    assert isinstance(step.network, Tapped)
    buffers = [(value, value.clone()) for value in step.network.model.buffers()]
    step.network.model.train()  # as every epoch does; compiled for evaluation it would be compiled again
    fast: Step | None = None
    try:
        with (
            torch.random.fork_rng(devices=[step.labels.device] if step.labels.is_cuda else []),
            warnings.catch_warnings(),
            _combined(),
        ):
            warnings.simplefilter("ignore")  # the compiler's own, on code of its making
            reach = ReachableParameters(
                step.parameters, [reachable_leaf_ids(value) for value in _outputs(step, min(size, 2))]
            )
            _settings().donated_buffer = False  # two backward passes go through one graph
            classifier.forward = torch.compiler.disable(classifier.forward)
            fast = replace(
                step, network=torch.compile(step.network.__call__, backend=BACKEND, dynamic=False), reach=reach
            )
            for value in _outputs(fast, size):
                torch.autograd.grad(value.float().sum(), step.parameters, retain_graph=True, allow_unused=True)
            return fast
    except (
        RuntimeError,
        ImportError,
        OSError,
        subprocess.SubprocessError,
    ) as error:  # the last: a C compiler that a kernel's first launch asks
        why = reason(error)
    finally:
        for value, before in buffers:
            value.copy_(before)
    fast = None  # with what it holds on the device
    release(classifier)
    warn(f"train.engine: the student cannot be compiled here ({why}); it runs as it is")
    return None


def _outputs(step: Step, size: int) -> list[Tensor]:
    """Logits and taps of black pictures."""
    logits, taps = step.student(
        torch.zeros(size, step.image_size, step.image_size, 3, dtype=torch.uint8, device=step.labels.device)
    )
    return [logits, *taps.values()]


def _combined() -> AbstractContextManager[Any]:
    import torch._inductor.config as settings

    return settings.patch({name: True for name in COMBINED if hasattr(settings, name)})


def _settings() -> Any:
    import torch._functorch.config as settings

    return settings


def release(classifier: nn.Module | None) -> None:
    """The classifier as it was before compiling, for whoever exports or copies the network, and the compiled code given up.

    torch keeps what it compiles as long as the process lives, and after a few networks it compiles no further one.
    """
    if classifier is not None and classifier.__dict__.pop("forward", None) is not None:
        _settings().donated_buffer = True
        torch.compiler.reset()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
