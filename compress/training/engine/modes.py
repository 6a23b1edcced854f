"""How steps run: as they are, with the student's network compiled (`compiled.py`), and recorded once and replayed (`recorded.py`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compress.training.engine.compile import compiled
from compress.training.engine.cuda_graph import Graphs
from compress.training.engine.recorder import Recorded, Recorder
from compress.training.step import Batch, Step

MIN_STEPS_TO_COMPILE = 50_000  # steps: `auto` compiles no shorter training on CUDA. ResNet-20 on an H200: 19 s of compiling, 0.54 ms a step; they pay from 35,000 steps on
RECORDERS: dict[str, Callable[[], Recorder]] = {"cuda": Graphs}  # by the type of a device that records

Run = Callable[[Batch], dict[str, Tensor]]


def engine(
    name: str, step: Step, size: int, steps: int, classifier: nn.Module | None, warn: Callable[[str], None]
) -> Run:
    """How a training of `steps` steps runs them. Batches of another size than `size` run as they are.

    auto: on CUDA recorded where method and teacher allow it, compiled too where the training is long; elsewhere as they are. compile: compiled on any
    device. graph: recorded, not compiled. eager: as they are. Several processes neither compile nor record.

    Args:
        classifier: the block that reads the pooled vector; None, where it is not known, is not compiled. warn: told where what was asked for is impossible.
    Raises: ValueError for an unknown name.
    """
    if name not in ("auto", "compile", "graph", "eager"):
        raise ValueError(f"engine must be 'auto', 'compile', 'graph' or 'eager', got {name!r}")
    if name != "auto" and (why := _refused(name, step)):
        warn(f"train.engine: {name} does nothing here ({why}); steps run as they are")
    if name == "eager" or step.group.size > 1:
        return step
    recorder, fast = RECORDERS.get(step.labels.device.type), None
    if name == "compile" or (name == "auto" and recorder is not None and steps >= MIN_STEPS_TO_COMPILE):
        fast = compiled(step, size, classifier, warn)
    if recorder is not None and _recordable(step):
        return Recorded(fast or step, step, size, recorder(), warn)
    return (lambda batch: (fast if len(batch.index) == size else step)(batch)) if fast else step


def _refused(name: str, step: Step) -> str | None:
    """Why an engine that was asked for changes nothing; None: it does."""
    if name != "eager" and step.group.size > 1:
        return "several processes neither compile nor record"
    if name == "graph" and step.labels.device.type not in RECORDERS:
        return f"nothing is recorded on {step.labels.device.type}"
    if name == "graph" and not _recordable(step):
        return "the method or its teacher needs more than the device in a step"
    return None


def _recordable(step: Step) -> bool:
    return step.method.recordable and (step.teacher is None or step.teacher.recordable)


def keep_layout(student: nn.Module) -> Callable[[], None]:
    """Gradients come out of the global pooling in channels_last, as everything in front of it is; what is returned takes the hooks off.

    torch 2.15 gives them in another layout than the maps they belong to; the ReLU and BatchNorm there, which read both, then took a twentieth of a step.
    """

    def before(_: nn.Module, args: tuple[Any, ...]) -> None:
        if not torch.compiler.is_compiling() and args[0].requires_grad:
            args[0].register_hook(lambda gradient: gradient.contiguous(memory_format=torch.channels_last))

    hooks = [
        module.register_forward_pre_hook(before)
        for module in student.modules()
        if isinstance(module, nn.AdaptiveAvgPool2d)
    ]

    def off() -> None:
        for hook in hooks:
            hook.remove()

    return off


def classifier_of(student: nn.Module, taps: Mapping[str, str]) -> nn.Module | None:
    """The block whose input is the pooled vector; None where that vector is read elsewhere."""
    path, _, side = taps.get("pooled", "").partition(":")
    return student.get_submodule(path) if side == "in" else None


class Rate:
    """The optimizer's learning rate: a number; on a device that records a tensor that keeps its place, for a recorded step reads it."""

    def __init__(self, optimizer: torch.optim.Optimizer, device: str) -> None:
        self.groups = optimizer.param_groups
        self.tensor = torch.zeros((), device=device) if torch.device(device).type in RECORDERS else None
        self.value = 0.0
        for group in self.groups if self.tensor is not None else ():
            group["lr"] = self.tensor

    def set(self, value: float) -> None:
        """For the next step."""
        if self.tensor is not None:
            if value != self.value:
                self.tensor.fill_(value)
            self.value = value
            return
        for group in self.groups:
            group["lr"] = value
