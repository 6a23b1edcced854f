"""The choice of an engine: steps as they are, with a compiled network (`compile`), or recorded (`recorder`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compress.training.engine.compile import compile_step
from compress.training.engine.cuda_graph import CudaGraphRecorder
from compress.training.engine.recorder import RecordedStep, Recorder
from compress.training.step import Batch, Step

# Under `auto` no shorter training is compiled on CUDA. Measured with ResNet-20 on an H200: compiling takes 19 s and
# saves 0.54 ms a step, so it pays from 35,000 steps on.
MIN_STEPS_TO_COMPILE = 50_000
# By the type of a device that records.
RECORDERS: dict[str, Callable[[], Recorder]] = {"cuda": CudaGraphRecorder}

StepRunner = Callable[[Batch], dict[str, Tensor]]


def choose_engine(
    name: str, step: Step, size: int, steps: int, classifier: nn.Module | None, warn: Callable[[str], None]
) -> StepRunner:
    """Return what runs the steps of a training.

    auto: on CUDA recorded where method and teacher allow it, and compiled too where the training is long; elsewhere the
    step itself. compile: compiled, on any device. graph: recorded, not compiled. eager: the step itself. Several
    processes neither compile nor record. Batches of another size than `size` run eagerly.

    Args:
        name: `train.engine`.
        step: one step as it is.
        size: images per batch.
        steps: of the whole training.
        classifier: the block that reads the pooled vector, or None where it is not known; nothing is compiled then.
        warn: called where what was asked for is impossible.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in ("auto", "compile", "graph", "eager"):
        raise ValueError(f"engine must be 'auto', 'compile', 'graph' or 'eager', got {name!r}")
    if name != "auto" and (why := _why_without_effect(name, step)):
        warn(f"train.engine: {name} does nothing here ({why}); steps run as they are")
    if name == "eager" or step.group.size > 1:
        return step
    recorder, fast = RECORDERS.get(step.labels.device.type), None
    if name == "compile" or (name == "auto" and recorder is not None and steps >= MIN_STEPS_TO_COMPILE):
        fast = compile_step(step, size, classifier, warn)
    if recorder is not None and _recordable(step):
        return RecordedStep(fast or step, step, size, recorder(), warn)
    return (lambda batch: (fast if len(batch.index) == size else step)(batch)) if fast else step


def _why_without_effect(name: str, step: Step) -> str | None:
    """Return why the requested engine changes nothing, or None where it does."""
    if name != "eager" and step.group.size > 1:
        return "several processes neither compile nor record"
    if name == "graph" and step.labels.device.type not in RECORDERS:
        return f"nothing is recorded on {step.labels.device.type}"
    if name == "graph" and not _recordable(step):
        return "the method or its teacher needs more than the device in a step"
    return None


def _recordable(step: Step) -> bool:
    return step.method.recordable and (step.teacher is None or step.teacher.recordable)


def keep_channels_last(student: nn.Module) -> Callable[[], None]:
    """Keep the gradients of the global pooling in channels_last; return what removes the hooks.

    torch 2.15 lays them out in another way than the maps that they belong to. ReLU and BatchNorm there read both, and
    took a twentieth of a step.
    """

    def before(_: nn.Module, args: tuple[Any, ...]) -> None:
        if not torch.compiler.is_compiling() and args[0].requires_grad:
            args[0].register_hook(lambda gradient: gradient.contiguous(memory_format=torch.channels_last))

    hooks = [
        module.register_forward_pre_hook(before)
        for module in student.modules()
        if isinstance(module, nn.AdaptiveAvgPool2d)
    ]

    def remove() -> None:
        for hook in hooks:
            hook.remove()

    return remove


def classifier_of(student: nn.Module, taps: Mapping[str, str]) -> nn.Module | None:
    """Return the block whose input is the pooled vector, or None where that vector is read elsewhere."""
    path, _, side = taps.get("pooled", "").partition(":")
    return student.get_submodule(path) if side == "in" else None
