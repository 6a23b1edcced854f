"""BatchNorm and the activation behind it in one pass over memory, for a student that trains on a CPU. Kernels: batch_norm.c.

As torch's operators they are a third of a compact network's step: each reads and writes whole maps, and channels that are no multiple of what the processor
computes at once (12, 58, 72, 116) are slow. Statistics and gradients here are summed in double precision over chunks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from compress.kernels.library import TYPES, Library

FEW = 2**14  # numbers: a second thread costs more than it brings
ACTIVATIONS = {nn.ReLU: (0.0, math.inf), nn.ReLU6: (0.0, 6.0)}
NONE = (-math.inf, math.inf)

Off = Callable[[], None]


class _BatchNorm(torch.autograd.Function):
    """min(max(batch_norm(x), low), high) of a batch's own statistics; the running ones are updated. x float32 or bfloat16 (N, C, H, W), channels_last."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, layer: nn.BatchNorm2d, bounds: tuple[float, float], made: Library) -> Tensor:
        n, c, h, w = x.shape
        threads = torch.get_num_threads() if x.numel() > FEW else 1
        kept, out = torch.empty(4, c), torch.empty_like(x)  # mean, 1 / deviation, slope, offset
        first, row = kept.data_ptr(), 4 * c
        running = layer.running_mean.data_ptr(), layer.running_var.data_ptr()  # type: ignore[union-attr]
        failed = made.forward[x.dtype](
            x.data_ptr(), n * h * w, c, weight.data_ptr(), bias.data_ptr(), layer.eps, layer.momentum, *bounds, *running,
            first, first + row, first + 2 * row, first + 3 * row, out.data_ptr(), threads,
        )  # fmt: skip
        if failed:
            raise MemoryError("a BatchNorm's working memory")
        ctx.save_for_backward(x)
        ctx.kept = kept, bounds, made, threads
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        kept, bounds, made, threads = ctx.kept
        n, c, h, w = x.shape
        gradient = gradient.to(x.dtype).contiguous(memory_format=torch.channels_last)
        out, own = torch.empty_like(x), torch.empty(2, c)
        first, row = kept.data_ptr(), 4 * c
        failed = made.backward[x.dtype](
            gradient.data_ptr(), x.data_ptr(), n * h * w, c, first, first + row, first + 2 * row, first + 3 * row, *bounds,
            out.data_ptr(), own.data_ptr(), own.data_ptr() + row, threads,
        )  # fmt: skip
        if failed:
            raise MemoryError("a BatchNorm's working memory")
        return out, own[0], own[1], None, None, None


def fuse(student: nn.Module, image_size: int, made: Library) -> Off:
    """Train the student's BatchNorms, each with the ReLU or ReLU6 that alone reads it, by the project's kernels; what is returned puts torch's back.

    A layer is left alone where it keeps no running statistics or is not float32, and its activation where a hook reads between the two; in evaluation, and
    for maps that are not channels_last, torch computes.
    """
    behind = _activations(student, image_size)
    changed: list[nn.Module] = []
    for layer in student.modules():
        if type(layer) is not nn.BatchNorm2d or layer.weight is None or layer.running_mean is None or layer.momentum is None:
            continue
        if any(value.dtype != torch.float32 or value.device.type != "cpu" for value in (layer.weight, layer.bias, layer.running_mean)):
            continue
        activation = behind.get(layer)
        bounds = NONE if activation is None else ACTIVATIONS[type(activation)]
        layer.forward = _forward(layer, activation, bounds, made)  # type: ignore[assignment]
        changed.append(layer)
        if activation is not None:
            activation.forward = _same
            changed.append(activation)

    def off() -> None:
        for module in changed:
            module.__dict__.pop("forward", None)

    return off


def _same(x: Tensor) -> Tensor:
    return x


def _forward(layer: nn.BatchNorm2d, activation: nn.Module | None, bounds: tuple[float, float], made: Library) -> Callable[[Tensor], Tensor]:
    plain = layer.forward
    activate = _same if activation is None else activation.forward
    counted, weight, bias = layer.num_batches_tracked, layer.weight, layer.bias
    assert counted is not None

    def forward(x: Tensor) -> Tensor:
        fits = layer.training and torch.is_grad_enabled() and x.dtype in TYPES and x.is_contiguous(memory_format=torch.channels_last)
        if not fits:
            return activate(plain(x))
        counted.add_(1)
        out = _BatchNorm.apply(x, weight, bias, layer, bounds, made)
        assert isinstance(out, Tensor)
        return out

    return forward


def _activations(student: nn.Module, image_size: int) -> dict[nn.Module, nn.Module]:
    """The activation module of each BatchNorm whose output nothing else reads, found by a forward pass: code may call modules in any way."""
    outputs: dict[int, tuple[nn.Module, Tensor, Any]] = {}
    pairs: list[tuple[nn.Module, nn.Module, Any]] = []
    calls: dict[nn.Module, int] = {}

    def after(layer: nn.Module, _: Any, output: Tensor) -> None:
        calls[layer] = calls.get(layer, 0) + 1
        outputs[id(output)] = layer, output, output.grad_fn

    def before(activation: nn.Module, args: tuple[Any, ...]) -> None:
        calls[activation] = calls.get(activation, 0) + 1
        if id(args[0]) in outputs:
            layer, _, node = outputs[id(args[0])]
            pairs.append((layer, activation, node))

    read = {module for module in student.modules() if module._forward_hooks or module._forward_pre_hooks}
    hooks = [module.register_forward_hook(after) for module in student.modules() if type(module) is nn.BatchNorm2d]
    hooks += [module.register_forward_pre_hook(before) for module in student.modules() if type(module) in ACTIVATIONS]
    training = student.training
    first = next(student.parameters())
    try:
        student.eval()  # statistics and dropout's random numbers stay as they are
        with torch.enable_grad():
            out = student(torch.zeros(2, 3, image_size, image_size, dtype=first.dtype))
    finally:
        student.train(training)
        for hook in hooks:
            hook.remove()
    readers = _readers(out.grad_fn)
    once = {module for module, count in calls.items() if count == 1} - read
    return {layer: activation for layer, activation, node in pairs if {layer, activation} <= once and readers.get(node) == 1}


def _readers(node: Any) -> dict[Any, int]:
    """How many operations read each operation's output, in the graph behind `node`."""
    count: dict[Any, int] = {}
    open_, seen = [node], set()
    while open_:
        one = open_.pop()
        if one is None or one in seen:
            continue
        seen.add(one)
        for other, _ in one.next_functions:
            count[other] = count.get(other, 0) + 1
            open_.append(other)
    return count
