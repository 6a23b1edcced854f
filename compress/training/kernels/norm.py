"""BatchNorm, the sum and the activation behind it in one pass over memory, for a student that trains on a CPU. Kernels: batch_norm.c.

As torch's operators they are a third of a compact network's step: each reads and writes whole maps, and channels that are no multiple of what the processor
computes at once (12, 58, 72, 116) are slow. Statistics and gradients here are summed in double precision over chunks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from compress.models.residual_add import ResidualAdd
from compress.training.kernels.library import TYPES, Library

FEW = 2**14  # numbers: a second thread costs more than it brings
ACTIVATIONS = {nn.ReLU: (0.0, math.inf), nn.ReLU6: (0.0, 6.0)}
NONE = (-math.inf, math.inf)
SHAPES = {"__get__", "size", "dim", "ndimension", "numel", "stride", "is_contiguous"}

Off = Callable[[], None]


class _BatchNorm(torch.autograd.Function):
    """min(max(batch_norm(x) + kept, low), high) of a batch's own statistics; the running ones are updated.

    x, kept: float32 or bfloat16 (N, C, H, W), both of one type and channels_last; kept None: nothing is added.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        kept: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        layer: nn.BatchNorm2d,
        bounds: tuple[float, float],
        made: Library,
    ) -> Tensor:
        n, c, h, w = x.shape
        threads = torch.get_num_threads() if x.numel() > FEW else 1
        found, out = torch.empty(4, c), torch.empty_like(x)  # mean, 1 / deviation, slope, offset
        first, row = found.data_ptr(), 4 * c
        running = layer.running_mean.data_ptr(), layer.running_var.data_ptr()  # type: ignore[union-attr]
        failed = made.forward[x.dtype](
            x.data_ptr(),
            None if kept is None else kept.data_ptr(),
            n * h * w,
            c,
            weight.data_ptr(),
            bias.data_ptr(),
            layer.eps,
            layer.momentum,
            *bounds,
            *running,
            first,
            first + row,
            first + 2 * row,
            first + 3 * row,
            out.data_ptr(),
            threads,
        )
        if failed:
            raise MemoryError("a BatchNorm's working memory")
        masked = kept is not None and bounds != NONE  # what passes the activation then follows from its output alone
        ctx.save_for_backward(x, out if masked else None)
        ctx.rest = found, kept is not None, bounds, made, threads
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, y = ctx.saved_tensors
        found, summed, bounds, made, threads = ctx.rest
        n, c, h, w = x.shape
        gradient = gradient.to(x.dtype).contiguous(memory_format=torch.channels_last)
        through = gradient if y is None else torch.empty_like(x)
        out, own = torch.empty_like(x), torch.empty(2, c)
        first, row = found.data_ptr(), 4 * c
        failed = made.backward[x.dtype](
            gradient.data_ptr(),
            x.data_ptr(),
            None if y is None else y.data_ptr(),
            n * h * w,
            c,
            first,
            first + row,
            first + 2 * row,
            first + 3 * row,
            *bounds,
            out.data_ptr(),
            None if y is None else through.data_ptr(),
            own.data_ptr(),
            own.data_ptr() + row,
            threads,
        )
        if failed:
            raise MemoryError("a BatchNorm's working memory")
        return out, through if summed else None, own[0], own[1], None, None, None


def fuse(student: nn.Module, image_size: int, made: Library) -> Off:
    """Train the student's BatchNorms by the project's kernels, each with the `ResidualAdd` and the ReLU or ReLU6 that alone read it; what is returned puts
    torch's operators back.

    A layer is left alone where it keeps no running statistics or is not float32, and what is behind it where a hook reads between; in evaluation, and
    for maps that are not channels_last, torch computes.
    """
    behind = _behind(student, image_size)
    changed: list[nn.Module] = []
    for layer in student.modules():
        if (
            type(layer) is not nn.BatchNorm2d
            or layer.weight is None
            or layer.bias is None
            or layer.running_mean is None
            or layer.momentum is None
        ):
            continue
        if any(
            value.dtype != torch.float32 or value.device.type != "cpu"
            for value in (layer.weight, layer.bias, layer.running_mean)
        ):
            continue
        followers = behind.get(layer, [])
        activation = followers[-1] if followers and type(followers[-1]) in ACTIVATIONS else None
        forward = _forward(layer, activation, made)
        if followers and type(followers[0]) is ResidualAdd:
            layer.forward = _same  # type: ignore[assignment,method-assign]
            followers[0].forward = forward  # type: ignore[method-assign]
        else:
            layer.forward = forward  # type: ignore[method-assign]
        if activation is not None:
            activation.forward = _same
        changed += [layer, *followers]

    def off() -> None:
        for module in changed:
            module.__dict__.pop("forward", None)

    return off


def _same(x: Tensor) -> Tensor:
    return x


def _forward(layer: nn.BatchNorm2d, activation: nn.Module | None, made: Library) -> Callable[..., Tensor]:
    """What computes the layer, a sum behind it where there is a second argument, and the activation."""
    plain = layer.forward
    bounds = NONE if activation is None else ACTIVATIONS[type(activation)]
    activate = _same if activation is None else activation.forward
    counted, weight, bias = layer.num_batches_tracked, layer.weight, layer.bias
    assert counted is not None

    def fits(x: Tensor) -> bool:
        return x.dtype in TYPES and x.is_contiguous(memory_format=torch.channels_last)

    def forward(x: Tensor, kept: Tensor | None = None) -> Tensor:
        alike = kept is None or (kept.dtype == x.dtype and kept.shape == x.shape and fits(kept))
        several = x.numel() > x.shape[1]  # of one value a channel there are no statistics, and torch says so
        if not (layer.training and torch.is_grad_enabled() and fits(x) and alike and several):
            return activate(plain(x) if kept is None else plain(x) + kept)
        counted.add_(1)
        out = _BatchNorm.apply(x, kept, weight, bias, layer, bounds, made)
        assert isinstance(out, Tensor)
        return out

    return forward


class _Reads(TorchFunctionMode):
    """How often each tensor is given to a function of torch; what asks only for its shape is no reader. The tensors are kept, so an `id` stays one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.count: dict[int, int] = {}
        self.kept: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") not in SHAPES:
            for value in tree_leaves((args, kwargs)):
                if isinstance(value, Tensor):
                    self.count[id(value)] = self.count.get(id(value), 0) + 1
                    self.kept.append(value)
        return func(*args, **kwargs)


def _behind(student: nn.Module, image_size: int) -> dict[nn.Module, list[nn.Module]]:
    """Behind each BatchNorm the `ResidualAdd` (its first argument the BatchNorm's output) and activation module that alone read what is before them.

    Found by a forward pass as training runs it: code may call modules in any way, and otherwise in evaluation. Buffers and random numbers stay as they are.
    """
    outputs: dict[int, tuple[nn.Module, Tensor, Any, int]] = {}
    pairs: list[tuple[nn.Module, nn.Module, Tensor, Any]] = []
    calls: dict[nn.Module, int] = {}
    seen: list[Any] = []  # by hooks: maps that must be what they are

    def after(module: nn.Module, _: Any, output: Tensor) -> None:
        calls[module] = calls.get(module, 0) + 1
        outputs[id(output)] = module, output, output.grad_fn, output._version

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and id(args[0]) in outputs:
            earlier, between, node, version = outputs[id(args[0])]
            if (
                node is not None and between.grad_fn is node and between._version == version
            ):  # nothing has written to it
                pairs.append((earlier, module, between, node))

    def reading(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen.extend(tree_leaves((args, output)))

    read = [module for module in student.modules() if module._forward_hooks or module._forward_pre_hooks]
    watched = [module for module in student.modules() if type(module) in (nn.BatchNorm2d, ResidualAdd, *ACTIVATIONS)]
    hooks = [module.register_forward_hook(reading) for module in read]
    hooks += [module.register_forward_hook(after) for module in watched]
    hooks += [module.register_forward_pre_hook(before) for module in watched if type(module) is not nn.BatchNorm2d]
    training, buffers = student.training, [(value, value.clone()) for value in student.buffers()]
    first = next(student.parameters())
    try:
        student.train()
        with torch.enable_grad(), torch.random.fork_rng(devices=[]), _Reads() as reads:
            out = student(torch.zeros(2, 3, image_size, image_size, dtype=first.dtype))
    finally:
        student.train(training)
        for hook in hooks:
            hook.remove()
        for value, was in buffers:
            value.copy_(was)
    readers, kept = _readers(out.grad_fn), {id(value) for value in seen}
    once = {module for module, count in calls.items() if count == 1}
    next_of = {
        earlier: later
        for earlier, later, between, node in pairs
        if {earlier, later} <= once
        and id(between) not in kept
        and reads.count.get(id(between)) == 1
        and readers.get(node) == 1
    }
    found: dict[nn.Module, list[nn.Module]] = {}
    for layer in watched:
        if type(layer) is nn.BatchNorm2d and layer in next_of:
            follower = next_of[layer]
            found[layer] = [follower]
            if type(follower) is ResidualAdd and follower in next_of:
                found[layer].append(next_of[follower])
    return found


def _readers(node: Any) -> dict[Any, int]:
    """How many operations read each operation's output, in the graph behind `node`: an autograd function of one's own is no function of torch."""
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
