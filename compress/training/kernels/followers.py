"""Which layers alone read a BatchNorm's output, found by watching one forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from compress.models.residual_add import ResidualAdd

# Functions that ask for a tensor's shape only.
SHAPE_QUERIES = {"__get__", "size", "dim", "ndimension", "numel", "stride", "is_contiguous"}


class _ReadCounter(TorchFunctionMode):
    """Counts how often each tensor is given to a function of torch that reads its values.

    The tensors are kept, so that no other tensor gets the `id` of one that was counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count: dict[int, int] = {}
        self.kept: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") not in SHAPE_QUERIES:
            for value in tree_leaves((args, kwargs)):
                if isinstance(value, Tensor):
                    self.count[id(value)] = self.count.get(id(value), 0) + 1
                    self.kept.append(value)
        return func(*args, **kwargs)


def followers(
    student: nn.Module, image_size: int, kinds: tuple[type[nn.Module], ...]
) -> dict[nn.Module, list[nn.Module]]:
    """Return for each BatchNorm the modules behind it, each the only reader of the map before it.

    They are a `ResidualAdd` whose first argument is the BatchNorm's output, an activation, or both. The forward pass
    runs in training mode, because code may call modules in any way, and in another way in evaluation. Buffers and
    random numbers stay as they are.

    Args:
        student: the network, on the CPU.
        image_size: side of its input in pixels.
        kinds: `ResidualAdd` and the activations that count.
    """
    outputs: dict[int, tuple[nn.Module, Tensor, Any, int]] = {}
    pairs: list[tuple[nn.Module, nn.Module, Tensor, Any]] = []
    calls: dict[nn.Module, int] = {}
    # Maps that hooks read, which must stay what they are.
    hooked: list[Any] = []

    def after(module: nn.Module, _: Any, output: Tensor) -> None:
        calls[module] = calls.get(module, 0) + 1
        outputs[id(output)] = module, output, output.grad_fn, output._version

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and id(args[0]) in outputs:
            earlier, between, node, version = outputs[id(args[0])]
            # Only where nothing has written to the map in between.
            if node is not None and between.grad_fn is node and between._version == version:
                pairs.append((earlier, module, between, node))

    def reading(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        hooked.extend(tree_leaves((args, output)))

    with_hooks = [module for module in student.modules() if module._forward_hooks or module._forward_pre_hooks]
    watched = [module for module in student.modules() if type(module) in (nn.BatchNorm2d, *kinds)]
    hooks = [module.register_forward_hook(reading) for module in with_hooks]
    hooks += [module.register_forward_hook(after) for module in watched]
    hooks += [module.register_forward_pre_hook(before) for module in watched if type(module) is not nn.BatchNorm2d]
    try:
        out, reads = _trial_pass(student, image_size)
    finally:
        for hook in hooks:
            hook.remove()
    readers, kept = _graph_readers(out.grad_fn), {id(value) for value in hooked}
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


def _trial_pass(student: nn.Module, image_size: int) -> tuple[Tensor, _ReadCounter]:
    """Run two black images through the student in training mode, and put mode and buffers back."""
    training, buffers = student.training, [(value, value.clone()) for value in student.buffers()]
    first = next(student.parameters())
    try:
        student.train()
        with torch.enable_grad(), torch.random.fork_rng(devices=[]), _ReadCounter() as reads:
            out: Tensor = student(torch.zeros(2, 3, image_size, image_size, dtype=first.dtype))
            return out, reads
    finally:
        student.train(training)
        for value, was in buffers:
            value.copy_(was)


def _graph_readers(node: Any) -> dict[Any, int]:
    """Return how many operations read each operation's output in the graph behind `node`.

    The counter above does not see custom autograd functions, which are no functions of torch; this does.
    """
    count: dict[Any, int] = {}
    pending, seen = [node], set()
    while pending:
        one = pending.pop()
        if one is None or one in seen:
            continue
        seen.add(one)
        for other, _ in one.next_functions:
            count[other] = count.get(other, 0) + 1
            pending.append(other)
    return count
