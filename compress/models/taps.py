"""Features of an unmodified network, read by forward hooks.

A tap is `path:in` or `path:out`, with the path of a module as in `named_modules`. A module that is called more than
once in a forward pass (one ReLU used twice) is tapped by call number, counted from 1: `layer4.1.relu:in#2`.
`layer1.3:in[1/2]` is the first of two equal parts of the channels, `features:out[mean]` the spatial mean of the map,
`a:out + b:in` two maps joined along the channels, `fc:weight` the module's weight itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from compress.core.errors import StageError, UsageError
from compress.models.catalog import did_you_mean

_TAP = re.compile(
    r"(?P<path>[^:#\[\]+\s]+):(?P<side>in|out|weight)(?:#(?P<call>[1-9]\d*))?"
    r"(?:\[(?P<part>[1-9])/(?P<parts>[1-9])\])?(?P<mean>\[mean\])?"
)


@dataclass(frozen=True)
class Tap:
    """A parsed tap.

    Attributes:
        text: The tap as written.
        path: Path of the module.
        side: "in", "out" or "weight".
        call: Number of the call, from 1; None for the module's only call.
        part: Which of `parts` equal parts of the channels, from 1.
        parts: Into how many parts the channels are split.
        mean: Whether to take the spatial mean.
    """

    text: str
    path: str
    side: str
    call: int | None
    part: int = 1
    parts: int = 1
    mean: bool = False


@dataclass
class _Record:
    """The tensors that the hooks saw in the current forward pass, by `path:side`."""

    active: bool = False
    seen: dict[str, list[Any]] = field(default_factory=dict)


def parse_tap(text: str, model: nn.Module) -> Tap:
    """Parse one tap, without `+`. Raises UsageError if its form is wrong or the network has no such module."""
    match = _TAP.fullmatch(text)
    if match is None:
        raise UsageError(f"tap {text!r}: write it as `module:in` or `module:out`, followed by `#2` for a second call")
    paths = tuple(path for path, _ in model.named_modules() if path)
    if match["path"] not in paths:
        raise UsageError(
            f"tap {text!r}: {type(model).__name__} has no module {match['path']!r}{did_you_mean(match['path'], paths)}"
        )
    part, parts = int(match["part"] or 1), int(match["parts"] or 1)
    if part > parts:
        raise UsageError(f"tap {text!r}: there is no part {part} of {parts}")
    return Tap(
        text,
        match["path"],
        match["side"],
        int(match["call"]) if match["call"] else None,
        part,
        parts,
        bool(match["mean"]),
    )


class Tapped:
    """A network with taps: `Tapped(model, {"pooled": "fc:in"})(x)` -> (logits, {"pooled": tensor}), one forward pass.

    It is not a module and owns nothing, so the model's state dict is unchanged. Its hooks stay on the model until
    `close()` or the end of a `with`, and record only during its own calls. Close it before the model is exported.
    """

    def __init__(self, model: nn.Module, taps: Mapping[str, str]) -> None:
        self.model = model
        self.taps = {name: [parse_tap(part, model) for part in text.split(" + ")] for name, text in taps.items()}
        self._record = _Record()
        self._closed = False
        self._hooks: list[RemovableHandle] = []
        for path, side in sorted({(tap.path, tap.side) for taps in self.taps.values() for tap in taps}):
            self._record.seen[f"{path}:{side}"] = []
            module = model.get_submodule(path)
            if side == "weight":
                continue
            if side == "in":
                self._hooks.append(module.register_forward_pre_hook(_keep_input(self._record, f"{path}:in")))
            else:
                self._hooks.append(module.register_forward_hook(_keep_output(self._record, f"{path}:out")))

    def __call__(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Run one forward pass; the tapped tensors carry gradients like any other.

        Raises:
            StageError: A tapped module is not called, is called more than once and the tap has no call number, or its
                tensor is overwritten in place later on.
        """
        if self._closed:
            raise RuntimeError("these taps are closed")
        self._record.active = True
        try:
            logits = self.model(x)
            return logits, {name: self._read(taps) for name, taps in self.taps.items()}
        finally:
            self._record.active = False
            for calls in self._record.seen.values():
                calls.clear()

    def _read(self, taps: list[Tap]) -> Tensor:
        """Return what the taps saw in this pass, joined along the channels if there are several."""
        seen = []
        for tap in taps:
            if tap.side == "weight":
                value = self.model.get_submodule(tap.path).weight
                assert isinstance(value, Tensor)
            else:
                value = _pick(tap, self._record.seen[f"{tap.path}:{tap.side}"])
            value = value if tap.parts == 1 else value.chunk(tap.parts, dim=1)[tap.part - 1]
            seen.append(value.mean((2, 3)) if tap.mean else value)
        return seen[0] if len(seen) == 1 else torch.cat(seen, dim=1)

    def close(self) -> None:
        """Remove the hooks from the model."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._closed = True

    def __enter__(self) -> Tapped:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _keep_input(record: _Record, key: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
        if record.active:
            value = args[0] if args else None
            record.seen[key].append((value, _version(value)))

    return hook


def _keep_output(record: _Record, key: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def hook(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        if record.active:
            record.seen[key].append((output, _version(output)))

    return hook


def _version(tensor: Any) -> int:
    """Return how often the tensor was written to; 0 if that is not tracked (a traced graph, inference mode)."""
    if torch.compiler.is_compiling() or not isinstance(tensor, Tensor) or tensor.is_inference():
        return 0
    return tensor._version


def _pick(tap: Tap, calls: list[tuple[Any, int]]) -> Tensor:
    if not calls:
        raise StageError(f"tap {tap.text!r}: the forward pass does not call {tap.path!r}; tap a module that it calls")
    if tap.call is None and len(calls) > 1:
        example = f"{tap.path}:{tap.side}#{len(calls)}"
        raise StageError(f"tap {tap.text!r}: {tap.path!r} is called {len(calls)} times; say which, as in {example!r}")
    if tap.call is not None and tap.call > len(calls):
        raise StageError(f"tap {tap.text!r}: {tap.path!r} is called only {len(calls)} times")
    tensor, version = calls[(tap.call or 1) - 1]
    if not isinstance(tensor, Tensor):
        raise StageError(
            f"tap {tap.text!r}: {tap.path!r} passes a {type(tensor).__name__} there, not a tensor; tap another module"
        )
    if _version(tensor) != version:
        raise StageError(
            f"tap {tap.text!r}: the network overwrites this tensor in place; tap the input of the module that follows"
        )
    return tensor
