"""A CUDA graph's behaviour on the CPU: records a step's operators with their tensors, and runs them again on these.

Python is not run again. As in a graph, whatever a step does not keep in a tensor stays as it was when recorded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from compress.training.engine.recorder import Losses, Run

WAITS = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "is_nonzero")


def tensors(*values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


class Watch(TorchDispatchMode):
    """Records whether an operator's result is needed on the CPU, which waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.waited = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.waited |= func.__name__.split(".")[0] in WAITS
        return func(*args, **(kwargs or {}))


class Tape(TorchDispatchMode):
    """Records the operators that run within it. `rewind` restores the tensors that existed before."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}
        self.made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__.split(".")[0] in WAITS:
            raise RuntimeError("operation not permitted when stream is capturing")
        for value in tensors(args, kwargs):
            if value.untyped_storage().data_ptr() not in self.made:
                self.before.setdefault(id(value), (value, value.detach().clone()))
        out = func(*args, **(kwargs or {}))
        if func.namespace != "profiler":
            known = {value.untyped_storage().data_ptr() for value in tensors(args, kwargs)}
            self.made |= {value.untyped_storage().data_ptr() for value in tensors(out)} - known
            self.calls.append((func, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def rewind(self) -> None:
        for value, before in self.before.values():
            value.copy_(before)

    @torch.no_grad()
    def play(self) -> None:
        for func, args, kwargs, out in self.calls:
            for was, now in zip(tensors(out), tensors(func(*args, **kwargs)), strict=True):
                if was.data_ptr() != now.data_ptr():
                    was.copy_(now)


class Tapes:
    """A `recorder.Recorder`.

    `recordings`: how many there were. `broken`: each fails half-way with two errors, as a graph does.
    """

    def __init__(self, *, broken: bool = False) -> None:
        self.recordings, self.freed, self.broken = 0, 0, broken

    def warm_up(self, run: Run) -> Losses:
        return run()

    def warm_up_watching(self, run: Run) -> tuple[Losses, bool]:
        with Watch() as watch:
            losses = run()
        return losses, watch.waited

    def record(self, run: Run) -> Run:
        self.recordings += 1
        drawn, tape = torch.get_rng_state(), Tape()
        with tape:
            losses = run()
        tape.rewind()
        torch.set_rng_state(drawn)
        if self.broken:
            try:
                raise RuntimeError("operation not permitted\nand more")
            except RuntimeError:
                raise RuntimeError("operation failed due to a previous error during capture") from None

        def replay() -> Losses:
            tape.play()
            return losses

        return replay

    def free(self) -> None:
        self.freed += 1
