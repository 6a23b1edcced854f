"""The user's own network, `package.module:function`: Python code that is run, so a recipe needs permission for it."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.core.errors import MissingError, UsageError
from compress.core.records.base import sha256_of
from compress.models import catalog
from compress.models.catalog import NetworkInfo
from compress.models.tap_tables import Roles
from compress.models.taps import Tapped

TAPS_KEYS = ("stages", "pre", "norms", "pool")  # of a network's `taps` attribute
TRACED_SIZES = (32, 64, 224)  # images on which the order of calls is looked at


def build(name: str, classes: int) -> nn.Module:
    """Build the user's network `module:function` by calling the function with `classes=`.

    Activations are switched to out-of-place, so that a later one cannot overwrite a tapped tensor.

    Raises:
        MissingError: The module is not found.
        UsageError: The module has no such function, or the function does not return an nn.Module.
    """
    path, function = name.split(":")
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        raise _not_found(name, f"there is no module {error.name!r}") from error
    make = getattr(module, function, None)
    if not callable(make) or "classes" not in inspect.signature(make).parameters:
        raise UsageError(
            f"model: {name}: {path} has no function {function}(classes); "
            "it must take the number of classes and return an nn.Module"
        )
    model = make(classes=classes)
    if not isinstance(model, nn.Module):
        raise UsageError(f"model: {name} returns a {type(model).__name__}, not an nn.Module")
    for part in model.modules():
        if getattr(part, "inplace", False):
            part.inplace = False  # type: ignore[assignment]
    return model


def describe(model: nn.Module, name: str, taps: tuple[str, ...] | None) -> NetworkInfo:
    """Describe a built network: its classifier, and the maps named by the recipe's `taps` or its own `taps` attribute.

    The attribute is a list of stages, shallow to deep, or a dict with `stages` and any of `pre` (the same maps before
    each stage's last activation), `norms` (the BatchNorms before `pre`) and `pool` (the module that averages the last
    map). A name without `:in` or `:out` means the module's output. Without `pool`, a forward pass shows the map: see
    `averaged_map`. A module that is never called plays no part.

    Args:
        model: The built network.
        name: Its name in the recipe.
        taps: The recipe's `taps`; None to use the attribute.

    Raises:
        UsageError: The attribute is wrong, or the network has no Linear.
    """
    offered = getattr(model, "taps", None)
    given: Any = taps or (offered if isinstance(offered, (list, tuple, dict)) else ())
    parts = dict(given) if isinstance(given, dict) else {"stages": given}
    unknown = [key for key in parts if key not in TAPS_KEYS]
    if unknown:
        raise UsageError(
            f"{name}: its attribute taps has the unknown key {unknown[0]!r}; known keys are {', '.join(TAPS_KEYS)}"
        )
    post, pre = (
        tuple(text if ":" in text else f"{text}:out" for text in parts.get(key) or ()) for key in ("stages", "pre")
    )
    if pre and len(pre) != len(post):
        raise UsageError(
            f"{name}: its attribute taps names {len(pre)} maps in `pre` for {len(post)} in `stages`; "
            "name one for each stage"
        )
    calls = module_calls(model)
    last = _called_linear(model, calls) or last_linear(model, name)
    pool = parts.get("pool") or called_pool(model, calls)
    averaged = f"{pool}:in" if pool else averaged_map(model, calls, last) or (post[-1] if post else "")
    roles = Roles(post, pre or post, tuple(parts.get("norms") or ()), averaged, averaged, pool=pool)
    return replace(catalog.info(name), classifier=last, linear=last, roles=roles)


def names_pool(model: nn.Module) -> bool:
    """Return whether the network's attribute `taps` names the pooling module, so that nothing is derived."""
    offered = getattr(model, "taps", None)
    return isinstance(offered, dict) and bool(offered.get("pool"))


@dataclass(frozen=True)
class ModuleCall:
    """A call of a module in a forward pass, with the shape of its output. `only`: the module is called once."""

    path: str
    shape: tuple[int, ...]
    only: bool


@torch.no_grad()
def module_calls(model: nn.Module, sizes: tuple[int, ...] = TRACED_SIZES) -> list[ModuleCall]:
    """Return the calls of modules in a forward pass, in the order in which they end; none if no size of image works."""
    found: list[tuple[str, tuple[int, ...]]] = []

    def keep(path: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _, __, output: found.append((path, tuple(output.shape) if isinstance(output, Tensor) else ()))

    hooks = [module.register_forward_hook(keep(path)) for path, module in model.named_modules() if path]
    training, device = model.training, next((one.device for one in model.parameters()), torch.device("cpu"))
    model.eval()  # statistics stay as they are
    try:
        for size in sizes:
            found.clear()
            with suppress(Exception):  # the user's code may refuse the size, or what has no values
                model(torch.zeros(1, 3, size, size, device=device))
                break
        else:
            found.clear()
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    times = Counter(path for path, _ in found)
    return [ModuleCall(path, shape, times[path] == 1) for path, shape in found]


def _called_linear(model: nn.Module, calls: list[ModuleCall]) -> str | None:
    """Return the Linear that is called last: the one that gives the logits."""
    paths = [call.path for call in calls if isinstance(model.get_submodule(call.path), nn.Linear)]
    return paths[-1] if paths else None


def called_pool(model: nn.Module, calls: list[ModuleCall]) -> str | None:
    """Return the average pooling that is called last; without a forward pass, the last AdaptiveAvgPool2d."""
    modules = dict(model.named_modules())
    if not calls:
        return next((path for path in reversed(modules) if isinstance(modules[path], nn.AdaptiveAvgPool2d)), None)
    pools = [
        call.path
        for call in calls
        if isinstance(modules[call.path], nn.AdaptiveAvgPool2d)
        or (isinstance(modules[call.path], nn.AvgPool2d) and call.shape[2:] == (1, 1))
    ]
    return pools[-1] if pools else None


def averaged_map(model: nn.Module, calls: list[ModuleCall], linear: str) -> str | None:
    """Return the last map before the classifier with as many channels as this reads; None if there is none.

    It is the pooled map where a function pools, such as `mean((2, 3))`; `check_pooling` tries it.
    """
    width = getattr(model.get_submodule(linear), "in_features", None)
    paths = [call.path for call in calls]
    before = calls[: paths.index(linear)] if linear in paths else []
    maps = [call for call in before if call.only and len(call.shape) == 4 and call.shape[1] == width]
    return f"{maps[-1].path}:out" if maps else None


def source_digest(name: str) -> str:
    """Return the sha256 (hex) of a network's code without running it.

    This covers the module's package or file, and what these import from the same folder. It does not cover installed
    packages, imports computed at run time, or files that the code reads.
    """
    top = name.split(":")[0].split(".")[0]
    spec = importlib.util.find_spec(top)
    if spec is None:
        raise _not_found(name, f"there is no module {top!r}")
    origin = Path((list(spec.submodule_search_locations or ()) or [spec.origin or ""])[0])
    root = origin.parent
    waiting, found = [origin], dict[str, str]()
    while waiting:
        place = waiting.pop()
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            shown = path.relative_to(root).as_posix()
            if shown in found:
                continue
            found[shown] = path.read_text(encoding="utf-8", errors="replace")
            # In site-packages every package is beside every other.
            if root.name not in ("site-packages", "dist-packages"):
                waiting += [
                    near
                    for word in _imported(found[shown])
                    for near in (root / word, root / f"{word}.py")
                    if near.exists()
                ]
    return sha256_of(sorted(found.items()))


def _imported(code: str) -> list[str]:
    """Return the top-level names of all absolute imports in a file."""
    try:
        nodes = list(ast.walk(ast.parse(code)))
    except SyntaxError:
        return []  # reported when it is imported
    words = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    words += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module]
    return [word.split(".")[0] for word in words]


def check_pooling(name: str, taps: tuple[str, ...] | None, image_size: int) -> None:
    """Raise UsageError if the classifier's input is not the mean over the pooled map, on fresh weights and noise.

    Args:
        name: The network.
        taps: The recipe's `taps`; None to use the attribute.
        image_size: Side of the images, in pixels.
    """
    model = build(name, 3).eval()
    info = describe(model, name, taps)
    if not averages(model, info, image_size):
        assert info.roles is not None
        raise UsageError(
            f"{name}: the input of its last Linear is not the mean over {info.roles.pre_pool!r}, the map before its "
            "pooling; name the pooling module as `pool` in its attribute taps"
        )


@torch.no_grad()
def averages(model: nn.Module, info: NetworkInfo, image_size: int) -> bool:
    """Return whether the classifier's input is the mean over the map before the pooling, on noise.

    The network's own BatchNorms get other statistics than fresh ones, which would hide one behind the pooling.
    """
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and isinstance(module.running_mean, Tensor):
            module.running_mean.add_(0.1)
    assert info.roles is not None
    with Tapped(model, {"map": info.roles.pre_pool, "vector": f"{info.classifier}:in"}) as tapped:
        _, seen = tapped(torch.randn(2, 3, image_size, image_size, generator=generator))
    return torch.allclose(seen["map"].mean((2, 3)), seen["vector"], rtol=1e-3, atol=1e-5)


def last_linear(model: nn.Module, name: str) -> str:
    """Return the path of the last Linear, whose input is the pooled vector. Raises UsageError if there is none."""
    paths: list[str] = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not paths:
        raise UsageError(f"model: {name} has no Linear layer for the logits; end it with one")
    return paths[-1]


def _not_found(name: str, reason: str) -> MissingError:
    return MissingError(
        f"model: {name}: {reason}; it is searched for beside the recipe, in the working folder and among the installed "
        "packages: ls"
    )
