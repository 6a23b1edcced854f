"""Networks looked up by name. Torch-free, so that a wrong name in a recipe is reported at once."""

from __future__ import annotations

import difflib
import re

from compress.core.errors import UsageError
from compress.models.network_table import NETWORKS, NetworkInfo

__all__ = [
    "CHECKPOINT_SUFFIXES",
    "NETWORKS",
    "NetworkInfo",
    "TIMM",
    "check_image_size",
    "did_you_mean",
    "info",
    "is_checkpoint",
    "is_custom",
    "is_known",
    "is_tag",
    "is_timm",
    "names",
    "resolve_width",
    "taps",
]

CHECKPOINT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".pth.tar")

TIMM = "timm/"  # before the name of a network of the package timm

_CUSTOM = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")

_TIMM = re.compile(r"timm/\w+")


def names() -> tuple[str, ...]:
    """Return all network names, in the order of the table."""
    return tuple(NETWORKS)


def did_you_mean(name: str, known: tuple[str, ...]) -> str:
    """Return ` (did you mean 'x'?)` if a known name is close, else the empty string."""
    by_lower = {option.lower(): option for option in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return f" (did you mean {by_lower[close[0]]!r}?)" if close else ""


def is_custom(name: str) -> bool:
    """Return whether a name is `package.module:function`, the user's own code."""
    return _CUSTOM.fullmatch(name) is not None


def is_timm(name: str) -> bool:
    """Return whether a name is `timm/NAME`; whether timm has that network is known where timm is loaded."""
    return _TIMM.fullmatch(name) is not None


def is_known(name: str) -> bool:
    """Return whether a recipe may name this network without permission to run code."""
    return name in NETWORKS or is_timm(name)


def is_tag(weights: str) -> bool:
    """Return whether a `weights` key may be timm's name of published weights, or `pretrained`."""
    return weights != "embedded" and re.fullmatch(r"\w+", weights) is not None


def is_checkpoint(weights: str) -> bool:
    """Return whether a `weights` key names a checkpoint file."""
    return weights.endswith(CHECKPOINT_SUFFIXES)


def info(name: str) -> NetworkInfo:
    """Return the entry of a network; for the user's own and timm's, what is known before it is built.

    Raises:
        UsageError: The name is unknown.
    """
    if name in NETWORKS:
        return NETWORKS[name]
    if is_custom(name):
        return NetworkInfo(name, "own", "the user's own network", 8, 32, "", "")
    if is_timm(name):
        return NetworkInfo(name, "timm", "a network of the package timm", 8, 224, "", "", mobile=True)
    in_torchvision = f"torchvision/{name}"
    hint = f" (did you mean {in_torchvision!r}?)" if in_torchvision in NETWORKS else did_you_mean(name, names())
    raise UsageError(f"model: there is no network {name!r}{hint}; `compress models` lists all")


def resolve_width(network: NetworkInfo, width: float | None) -> float | None:
    """Return the width to build with: the given one, if the network takes it, or the default. Raises UsageError."""
    if width is None:
        return network.default_width
    if network.widths is None:
        raise UsageError(f"width: {network.name} has no width option; leave `width` out")
    if network.width_choices and width not in network.width_choices:
        allowed = ", ".join(f"{choice:g}" for choice in network.width_choices)
        raise UsageError(f"width: {network.name} comes in the widths {allowed}, not {width:g}")
    low, high = network.widths
    if not low <= width <= high:
        raise UsageError(f"width: {network.name} takes {low:g} to {high:g}, not {width:g}")
    return width


def taps(network: NetworkInfo) -> dict[str, str]:
    """Return name -> tap of everything that a method may read; see `outline.Outline` for the names."""
    found = {"pooled": network.pooled or f"{network.classifier}:in", "head": f"{network.linear}:weight"}
    if network.roles is None:
        return found
    for role in ("stages_post", "stages_pre"):
        found |= {f"{role}.{number}": tap for number, tap in enumerate(getattr(network.roles, role), 1)}
    last = {"pre_pool": network.roles.pre_pool, "last_stage": network.roles.last_stage}
    # The user's own network may name none.
    return {**found, **{name: tap for name, tap in last.items() if tap}}


def check_image_size(network: NetworkInfo, image_size: int) -> None:
    """Raise UsageError if images of this side, in pixels, are too small for the network."""
    if image_size < network.min_size:
        raise UsageError(
            f"data.image_size: {network.name} needs images of at least {network.min_size} pixels, not {image_size}"
        )
