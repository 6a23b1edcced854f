"""How steps run: as they are, with the student's network compiled, and on CUDA recorded once as a graph and replayed.

A CPU cannot launch the operations of a small network as fast as a GPU computes them. Compiled, a few fused kernels take their place; recorded, the whole
step is one launch: what changes from step to step (pictures, views, learning rate, epoch) stands in tensors that keep their place.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from compress.models.taps import Tapped
from compress.step import Batch, Step

WARM_UP = 3  # steps before a graph is recorded: they choose kernels and make the optimizer's state
LONG = 20_000  # steps: `auto` compiles no shorter training on CUDA, which would be over before a minute or more of compiling has paid
BACKEND = "inductor"

Run = Callable[[Batch], dict[str, Tensor]]


def engine(name: str, step: Step, size: int, steps: int, classifier: nn.Module | None, warn: Callable[[str], None]) -> Run:
    """How a training of `steps` steps runs them. Batches of another size than `size` run as they are.

    auto: on CUDA recorded where the method allows it, compiled too where the training is long; elsewhere as they are. compile: compiled on any device.
    graph: recorded, not compiled. eager: as they are. Several processes neither compile nor record.

    Args:
        classifier: the block that reads the pooled vector; None, where it is not known, is not compiled. warn: told where something is impossible.
    Raises: ValueError for an unknown name.
    """
    if name not in ("auto", "compile", "graph", "eager"):
        raise ValueError(f"engine must be 'auto', 'compile', 'graph' or 'eager', got {name!r}")
    if name == "eager" or step.group.size > 1:
        return step
    cuda, fast = step.labels.is_cuda, None
    if name == "compile" or (name == "auto" and cuda and steps >= LONG):
        fast = compiled(step, size, classifier, warn)
    if cuda and step.method.recordable:
        return Recorded(fast or step, step, size, warn)
    return (lambda batch: (fast if len(batch.index) == size else step)(batch)) if fast else step


def compiled(step: Step, size: int, classifier: nn.Module | None, warn: Callable[[str], None]) -> Step | None:
    """The step with its network compiled by torch.compile for batches of `size`; None, after a word to `warn`, where that is impossible.

    Losses, gradients, alignment and optimizer stay as they are, and so does the classifier: a loss that does not reach it must leave it without a
    gradient, where a compiled graph would give zeros, and the alignment counts what both losses reach. The network is tried before it is used, with
    two backward passes; its buffers and torch's random state are put back.
    """
    if classifier is None:
        warn("train.engine: the student cannot be compiled here (its classifier is not known apart); it runs as it is")
        return None
    assert isinstance(step.network, Tapped)
    buffers = [(value, value.clone()) for value in step.network.model.buffers()]
    step.network.model.train()  # as every epoch does; compiled for evaluation it would be compiled again
    try:
        with torch.random.fork_rng(devices=[step.labels.device] if step.labels.is_cuda else []), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's own, on code of its making
            import torch._functorch.config as settings

            settings.donated_buffer = False  # two backward passes go through one graph
            classifier.forward = torch.compiler.disable(classifier.forward)
            fast = replace(step, network=torch.compile(step.network.__call__, backend=BACKEND, dynamic=False))
            _try(fast, size)
    except (RuntimeError, ImportError, OSError) as error:
        release(classifier)
        cause = getattr(error, "inner_exception", error)  # what a backend raised, without the compiler's frame around it
        reason = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        warn(f"train.engine: the student cannot be compiled here ({reason}); it runs as it is")
        return None
    finally:
        for value, before in buffers:
            value.copy_(before)
    return fast


def _try(step: Step, size: int) -> None:
    logits, taps = step.student(torch.zeros(size, step.image_size, step.image_size, 3, dtype=torch.uint8, device=step.labels.device))
    for value in (logits, *taps.values()):
        torch.autograd.grad(value.float().sum(), step.parameters, retain_graph=True, allow_unused=True)


def keep_layout(student: nn.Module) -> Callable[[], None]:
    """Gradients come out of the global pooling in channels_last, as everything in front of it is; what is returned takes the hooks off.

    torch 2.15 gives them in another layout than the maps they belong to; the ReLU and BatchNorm there, which read both, then took a twentieth of a step.
    """

    def before(_: nn.Module, args: tuple[Any, ...]) -> None:
        if not torch.compiler.is_compiling() and args[0].requires_grad:
            args[0].register_hook(lambda gradient: gradient.contiguous(memory_format=torch.channels_last))

    hooks = [module.register_forward_pre_hook(before) for module in student.modules() if isinstance(module, nn.AdaptiveAvgPool2d)]

    def off() -> None:
        for hook in hooks:
            hook.remove()

    return off


def release(classifier: nn.Module | None) -> None:
    """The classifier as it was before compiling, for whoever exports or copies the network."""
    if classifier is not None:
        classifier.__dict__.pop("forward", None)


def classifier_of(student: nn.Module, taps: Mapping[str, str]) -> nn.Module | None:
    """The block whose input is the pooled vector; None where that vector is read elsewhere."""
    path, _, side = taps.get("pooled", "").partition(":")
    return student.get_submodule(path) if side == "in" else None


class Recorded:
    """A step as a CUDA graph. The first steps run without; batches of another size are given to `other`.

    `warn` is told once where recording fails; then no step is recorded. `count`: replayed steps, for a test.
    """

    def __init__(self, step: Step, other: Step, size: int, warn: Callable[[str], None]) -> None:
        self.step, self.other, self.size, self.warn = step, other, size, warn
        self.graph: torch.cuda.CUDAGraph | None = None
        self.batch: Batch | None = None
        self.losses: dict[str, Tensor] = {}
        self.eager, self.phase, self.failed, self.count = 0, None, False, 0

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """See `Step`."""
        if len(batch.index) != self.size:
            return self.other(batch)
        if self.failed:
            return self.step(batch)
        phase: Any = self.step.method.phase
        if phase != self.phase:  # another phase computes other losses
            self.graph, self.eager, self.phase = None, 0, phase
        if self.eager < WARM_UP:
            self.eager += 1
            return self._beside(batch)
        if self.graph is None and not self._record(batch):
            return self.step(batch)
        assert self.graph is not None and self.batch is not None
        for name in ("index", "view", "known", "epoch", "step", "pixels"):
            kept, new = getattr(self.batch, name), getattr(batch, name)
            if kept is not None:
                kept.copy_(new)
        self.graph.replay()
        self.count += 1
        return {name: loss.clone() for name, loss in self.losses.items()}

    def _beside(self, batch: Batch) -> dict[str, Tensor]:
        """On a stream of its own: what a warm-up allocates must not be tied to the default stream."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            losses = self.step(batch)
        torch.cuda.current_stream().wait_stream(stream)
        return losses

    def _record(self, batch: Batch) -> bool:
        """Record, which computes nothing. False where it fails."""
        known, pixels = (None if value is None else value.clone() for value in (batch.known, batch.pixels))
        kept = replace(batch, index=batch.index.clone(), view=batch.view.clone(), epoch=batch.epoch.clone(), step=batch.step.clone())
        self.batch = replace(kept, known=known, pixels=pixels)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.losses = self.step(self.batch)
        except RuntimeError as error:
            self.failed = True
            self.warn(f"train.engine: this step cannot be recorded as a CUDA graph ({str(error).strip().splitlines()[0]}); it runs without, slower")
            return False
        self.graph = graph
        return True


class Rate:
    """The optimizer's learning rate: a number on the CPU; on CUDA a tensor that keeps its place, for a recorded step reads it."""

    def __init__(self, optimizer: torch.optim.Optimizer, device: str) -> None:
        self.groups = optimizer.param_groups
        self.tensor = torch.zeros((), device=device) if device.startswith("cuda") else None
        for group in self.groups if self.tensor is not None else ():
            group["lr"] = self.tensor

    def set(self, value: float) -> None:
        """For the next step."""
        if self.tensor is not None:
            self.tensor.fill_(value)
            return
        for group in self.groups:
            group["lr"] = value
