"""The optimizer of a training, its learning rate, and the moving average of the weights that it steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from compress.recipe.schema import ResolvedTrain

# A moving average begins with few steps: step t, counted from 0, keeps at most (1 + t) / (WARM_UP + t) of it.
WARM_UP = 10.0


def build_optimizer(parameters: Sequence[Tensor], train: ResolvedTrain) -> torch.optim.Optimizer:
    """Build the optimizer that `train` asks for, fused: one operator for all parameters of a group.

    Under `decay_norms: false`, vectors and scalars (the weights of norms, biases) have a group without weight decay.
    """
    groups: list[dict[str, Any]] = [{"params": list(parameters)}]
    if train.decay_norms is False:
        parts = [[p for p in parameters if (p.dim() > 1) is decayed] for decayed in (True, False)]
        groups = [{"params": parts[0]}, {"params": parts[1], "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
    if train.optimizer == "adamw":
        return _adamw(groups, train)
    return sgd(groups, lr=train.lr, momentum=train.momentum, weight_decay=train.weight_decay, nesterov=train.nesterov)


def sgd(
    parameters: Sequence[Any], *, lr: float, momentum: float, weight_decay: float, nesterov: bool = False
) -> torch.optim.SGD:
    """Build fused SGD for parameters, or for groups of them."""
    optimizer = torch.optim.SGD(
        parameters, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, fused=True
    )
    # Fused SGD cannot add a buffer when a later phase of the method reaches a parameter for the first time, so all
    # buffers exist from the start.
    if momentum:
        optimizer.state.update({p: {"momentum_buffer": torch.zeros_like(p)} for p in _all(optimizer)})
    return optimizer


def _adamw(groups: Sequence[Any], train: ResolvedTrain) -> torch.optim.AdamW:
    """Build fused AdamW. Its state exists from the start, as that of SGD, also for a step that is recorded."""
    on_cuda = groups[0]["params"][0].is_cuda
    optimizer = torch.optim.AdamW(groups, lr=train.lr, weight_decay=train.weight_decay, fused=True, capturable=on_cuda)
    for p in _all(optimizer):
        optimizer.state[p] = {
            "step": torch.zeros((), dtype=torch.float32, device=p.device),
            "exp_avg": torch.zeros_like(p),
            "exp_avg_sq": torch.zeros_like(p),
        }
    return optimizer


def _all(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


class LearningRate:
    """The optimizer's learning rate: a number, or where steps are recorded a tensor, which a recorded step reads."""

    def __init__(self, optimizer: torch.optim.Optimizer, device: str, *, recorded: bool) -> None:
        self.groups = optimizer.param_groups
        self.tensor = torch.zeros((), device=device) if recorded else None
        self.value = 0.0
        for group in self.groups if self.tensor is not None else ():
            group["lr"] = self.tensor

    def set(self, value: float) -> None:
        """Set the rate of the next step."""
        if self.tensor is not None:
            if value != self.value:
                self.tensor.fill_(value)
            self.value = value
            return
        for group in self.groups:
            group["lr"] = value


class MovingAverage:
    """An exponential moving average of parameters, updated after every step without waiting for the device.

    Args:
        parameters: those that the optimizer steps.
        decay: what a step keeps of the average, in (0, 1); less in the first steps.
        values: an earlier average to continue, on any device; None: it begins with the parameters as they are.
    """

    def __init__(self, parameters: Sequence[Tensor], decay: float, values: Sequence[Tensor] | None = None) -> None:
        self.parameters, self.decay = list(parameters), decay
        self.values = [p.detach().clone() for p in self.parameters]
        for value, earlier in zip(self.values, values or self.values, strict=True):
            value.copy_(earlier)

    @torch.no_grad()
    def update(self, step: Tensor) -> None:
        """Move towards the parameters. `step`: 0-dim int64 on the device, steps done before this one."""
        kept = ((1.0 + step) / (WARM_UP + step)).clamp(max=self.decay)
        moves = torch._foreach_sub(self.parameters, self.values)
        torch._foreach_mul_(moves, 1.0 - kept)
        torch._foreach_add_(self.values, moves)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average with the parameters, in place; a second call puts both back."""
        for p, value in zip(self.parameters, self.values, strict=True):
            before = p.detach().clone()
            p.copy_(value)
            value.copy_(before)
