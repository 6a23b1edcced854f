"""Which weights of a checkpoint file a network takes: averaged ones first, under the prefix that all its keys have."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from compress.core.errors import UsageError
from compress.models import timm_models
from compress.models.checkpoint_files import CheckpointContent, as_float32, read_content, some
from compress.models.layer_names import PREFIXES, head_keys, is_counter, renamed, strip_prefixes

AVERAGED = re.compile(r"(^|[._-])(ema|swa|avg|averaged?|shadow|polyak)([._-]|$)", re.IGNORECASE)
MAX_PREFIX_PARTS = 5
# Tensors beside the network's layers, such as the class weights of a loss, may have this share of its numbers.
MAX_IGNORED_SHARE = 0.05


@dataclass(frozen=True)
class TakenWeights:
    """The weights that were taken from a file.

    Attributes:
        state: The state dict; keys as in the file, without the prefix.
        key: The `weights_key` that takes the same weights; None where it is the file's usual place that is taken.
        note: What was taken and what was left, for the log; "" for a file that holds the weights alone.
    """

    state: dict[str, Tensor]
    key: str | None
    note: str


@dataclass(frozen=True)
class _Fit:
    """A place in the file where every key of the network is found; `ignored` are keys that are not the network's."""

    place: str
    prefix: str
    state: dict[str, Tensor]
    ignored: tuple[str, ...]
    same_shapes: bool

    @property
    def name(self) -> str:
        """How `weights_key` names it."""
        return ".".join(part for part in (self.place, self.prefix.rstrip(".")) if part) or "."

    @property
    def averaged(self) -> bool:
        """Whether its name says that these are averaged weights."""
        return AVERAGED.search(self.name) is not None

    def answers_to(self, key: str) -> bool:
        """Return whether a recipe's `weights_key` means it."""
        return key.rstrip(".") in (self.name, self.place, self.prefix.rstrip(".")) or key == self.name


def take_weights(path: Path, model: nn.Module, key: str | None = None) -> TakenWeights:
    """Choose the weights of a file for a network.

    Averaged weights are taken before raw ones. What is left is named in the note.

    Args:
        path: The checkpoint.
        model: The network; its values are not read, so it may lie on the meta device.
        key: The recipe's `weights_key`: the name of an entry of the file, of a prefix of its keys, or both joined by a
            dot; None: see above.

    Raises:
        UsageError: There are several such networks, or none under `key`; the message shows what there is.
        CompressError: See `read_content`.
    """
    content = read_content(path)
    if timm_models.is_timm(model):
        states = {place: timm_models.converted(state, model) for place, state in content.states.items()}
        content = replace(content, states=states)
    fits = [fit for place, state in content.states.items() for fit in _fits(place, state, model)]
    chosen = _choose(path, fits, content, key)
    if chosen is None and (parts := _in_two_parts(content, model)) is not None:
        return parts
    if chosen is None:  # `load_state` says what does not fit
        place = key if key in content.states else content.default
        place = next(iter(content.states)) if place is None else place
        return TakenWeights(as_float32(strip_prefixes(content.states[place])), None, "")
    by_default = key is None and content.default in (None, chosen.place)
    return TakenWeights(as_float32(chosen.state), None if by_default else chosen.name, _note(chosen, fits, content))


def _in_two_parts(content: CheckpointContent, model: nn.Module) -> TakenWeights | None:
    """Take a network that was saved as a backbone and a last layer, `backbone.conv1.weight` and `head.weight`.

    Returns None unless all layers but the last are under one prefix, and at most one Linear is outside it.
    """
    expected, head = model.state_dict(), head_keys(model)
    body = [key for key in expected if key not in head and not is_counter(key)]
    for place, whole in content.states.items():
        state = strip_prefixes(whole)
        for prefix in dict.fromkeys(f"{key.split('.')[0]}." for key in state):
            inside = renamed(
                {key.removeprefix(prefix): item for key, item in state.items() if key.startswith(prefix)}, expected
            )
            if not all(key in inside and inside[key].shape == expected[key].shape for key in body):
                continue
            linear = [key for key, item in state.items() if not key.startswith(prefix) and item.ndim == 2]
            if len(linear) > 1 or len(head) != 2 or any(key in inside for key in head):
                continue
            taken = {key: item for key, item in inside.items() if key in expected}
            stem = linear[0].removesuffix("weight") if linear else ""
            for key, name in zip(head, ("weight", "bias"), strict=True):
                if stem and f"{stem}{name}" in state:
                    taken[key] = state[f"{stem}{name}"]
            last = f"its last layer from {stem.rstrip('.')}" if stem else "without a last layer"
            where = f" of {place}" if place else ""
            return TakenWeights(as_float32(taken), None, f"the network under {prefix.rstrip('.')}{where}, {last}")
    return None


def _prefixes(state: Mapping[str, Tensor], model: nn.Module) -> Iterator[str]:
    """Yield the prefixes that as many keys have as the network has."""
    needed = sum(not is_counter(key) for key in model.state_dict())
    counts: Counter[str] = Counter()
    for key in state:
        parts = key.split(".")
        counts.update(".".join(parts[:n]) + "." for n in range(1, min(len(parts), MAX_PREFIX_PARTS + 1)))
    yield ""
    yield from (prefix for prefix, count in counts.items() if count >= needed)


def _fits(place: str, state: Mapping[str, Tensor], model: nn.Module) -> list[_Fit]:
    """Find the network under every prefix of a state dict."""
    prefixes = list(_prefixes(state, model))
    found = [_fit(place, prefix, state, model, tuple(prefixes)) for prefix in prefixes]
    return [fit for fit in found if fit is not None]


def _fit(
    place: str, prefix: str, state: Mapping[str, Tensor], model: nn.Module, prefixes: tuple[str, ...]
) -> _Fit | None:
    """Return the network's weights under a prefix; None if a key is missing, or another network is there.

    `prefixes`: all that as many keys have as the network has: behind a longer one there is another network.
    """
    other_networks = tuple(one for one in prefixes if len(one) > len(prefix))
    expected = model.state_dict()
    inside = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    given = renamed(inside, expected)
    if any(key not in given and not is_counter(key) for key in expected):
        return None
    names = dict(zip(inside, given, strict=True))
    unknown = [key for key in inside if names[key] not in expected and not is_counter(key)]
    more = [key for key in unknown if not (prefix + key).startswith(other_networks)]
    layers = {key.split(".")[0] for key in expected}
    numbers = sum(tensor.numel() for tensor in expected.values())
    if {names[key].split(".")[0] for key in more} & layers:
        return None  # a deeper network has the layers of this one, and others
    if sum(inside[key].numel() for key in more) > MAX_IGNORED_SHARE * numbers:
        return None
    own = {key: tensor for key, tensor in inside.items() if key not in unknown}
    outside = [key for key in state if not key.startswith(prefix) and not is_counter(key)]
    free = head_keys(model)
    same = all(given[key].shape == expected[key].shape for key in expected if key in given and key not in free)
    return _Fit(place, prefix, own, (*(prefix + key for key in unknown), *outside), same)


def _choose(path: Path, fits: list[_Fit], content: CheckpointContent, key: str | None) -> _Fit | None:
    """Return the fit to take; None if there is none. Raises UsageError if the recipe must say which."""
    if key is not None:
        named = [fit for fit in fits if fit.answers_to(key)]
        named = [fit for fit in named if fit.name == key] or named
        if not named and key in content.states:
            return None
        if not named:
            there = some([fit.name for fit in fits] or [name or "." for name in content.states])
            raise UsageError(f"weights_key: {path} has no weights {key!r} of this network; it holds {there}")
        return _only(path, named)
    fits = [fit for fit in fits if fit.same_shapes] or fits
    averaged = [fit for fit in fits if fit.averaged]
    if averaged or len(fits) < 2:
        return _only(path, averaged or fits) if fits else None
    usual = [fit for fit in fits if fit.place == content.default]
    if len(usual) == 1 and _is_wrapper(usual[0].prefix):
        return usual[0]
    return _only(path, fits)


def _only(path: Path, fits: list[_Fit]) -> _Fit:
    """Return the only fit, or the first of equal ones. Raises UsageError for different ones."""
    first = fits[0]
    if all(_equal(first.state, fit.state) for fit in fits[1:]):
        return first
    raise UsageError(
        f"weights: {path} holds several networks of this kind: {', '.join(fit.name for fit in fits)}; say which: "
        f"weights_key: {fits[0].name}"
    )


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def _is_wrapper(prefix: str) -> bool:
    """Return whether a prefix is made of those that wrapper classes leave."""
    while prefix:
        known = next((one for one in PREFIXES if prefix.startswith(one)), None)
        if known is None:
            return False
        prefix = prefix.removeprefix(known)
    return True


def _note(chosen: _Fit, fits: list[_Fit], content: CheckpointContent) -> str:
    """Say what was taken, what else there is, and which keys were ignored."""
    where = [chosen.place] if chosen.place else []
    where += [f"prefix {chosen.prefix}"] if chosen.prefix else []
    parts = [", ".join(where) + (" (averaged weights)" if chosen.averaged else "")] if where else []
    others = [fit for fit in fits if fit is not chosen]
    if others:
        parts.append(f"not taken: {', '.join(fit.name for fit in others)} (weights_key takes another)")
    elsewhere = tuple(fit.prefix for fit in others if fit.place == chosen.place and fit.prefix)
    ignored = [key for key in chosen.ignored if not (elsewhere and key.startswith(elsewhere))]
    if ignored:
        parts.append(f"ignored: {some(ignored)}")
    names = {fit.place for fit in fits}
    unused = [name for name in (*content.states, *content.unread) if name not in names and AVERAGED.search(name)]
    if unused and not chosen.averaged:
        parts.append(f"averaged weights under {some(unused)} do not have all keys of the network, so raw ones are used")
    return "; ".join(parts)
