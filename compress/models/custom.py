"""A network of one's own, `package.module:function`: Python code that is run, so a recipe may name one only where it is allowed to."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.core.errors import MissingError, UsageError
from compress.core.records.base import sha256_of
from compress.models import catalog
from compress.models.catalog import NetworkInfo
from compress.models.tap_tables import Roles
from compress.models.taps import Tapped

PARTS = ("stages", "pre", "norms", "pool")  # of a network's attribute `taps`


def build(name: str, classes: int) -> nn.Module:
    """What the function gives for `classes=`; activations are switched to out-of-place, so that a tap keeps what it saw.

    Raises MissingError where the module is not found, UsageError where it has no such function or that gives no module.
    """
    path, function = name.split(":")
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        raise _not_found(name, f"there is no module {error.name!r}") from error
    make = getattr(module, function, None)
    if not callable(make) or "classes" not in inspect.signature(make).parameters:
        raise UsageError(
            f"model: {name}: {path} has no function {function}(classes); it is called with the number of classes and gives an nn.Module"
        )
    model = make(classes=classes)
    if not isinstance(model, nn.Module):
        raise UsageError(f"model: {name} gives a {type(model).__name__}, not an nn.Module")
    for part in model.modules():
        if getattr(part, "inplace", False):
            part.inplace = False  # type: ignore[assignment]
    return model


def describe(model: nn.Module, name: str, taps: tuple[str, ...] | None) -> NetworkInfo:
    """What is known of a built network: its classifier, and the maps that `taps` (the recipe's) or its own attribute `taps` name.

    The attribute is a list of its stages, shallow to deep, or a dict with `stages` and any of `pre` (the same maps before each stage's last
    activation), `norms` (the BatchNorms behind `pre`) and `pool` (the module that averages the last map). A name without `:in` or `:out` stands
    for the module's output. Without `pool`, the last AdaptiveAvgPool2d is taken, else the last stage is what is averaged. Raises UsageError.
    """
    offered = getattr(model, "taps", None)
    given: Any = taps or (offered if isinstance(offered, (list, tuple, dict)) else ())
    parts = dict(given) if isinstance(given, dict) else {"stages": given}
    unknown = [key for key in parts if key not in PARTS]
    if unknown:
        raise UsageError(f"{name}: its attribute taps has {unknown[0]!r}; known are {', '.join(PARTS)}")
    post, pre = (
        tuple(text if ":" in text else f"{text}:out" for text in parts.get(key) or ()) for key in ("stages", "pre")
    )
    if pre and len(pre) != len(post):
        raise UsageError(
            f"{name}: its attribute taps names {len(pre)} maps in `pre` for {len(post)} in `stages`; each stage has one"
        )
    pools = [path for path, module in model.named_modules() if isinstance(module, nn.AdaptiveAvgPool2d)]
    pool = parts.get("pool") or (pools[-1] if pools else None)
    averaged = f"{pool}:in" if pool else post[-1] if post else ""
    last = last_linear(model, name)
    roles = Roles(post, pre or post, tuple(parts.get("norms") or ()), averaged, averaged, pool=pool)
    return replace(catalog.info(name), classifier=last, linear=last, roles=roles)


def source_digest(name: str) -> str:
    """sha256 (hex) of the code: the module's package, or file, and what those import that lies in the same folder. Nothing is run.

    What else they import (installed packages), imports that are made up while it runs, and files that it reads are not part of it.
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
            if root.name not in ("site-packages", "dist-packages"):  # there every package lies beside every other
                waiting += [
                    near
                    for word in _imported(found[shown])
                    for near in (root / word, root / f"{word}.py")
                    if near.exists()
                ]
    return sha256_of(sorted(found.items()))


def _imported(code: str) -> list[str]:
    """First parts of the absolute imports in a file, wherever they stand."""
    try:
        nodes = list(ast.walk(ast.parse(code)))
    except SyntaxError:
        return []  # it is said when it is imported
    words = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    words += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module]
    return [word.split(".")[0] for word in words]


@torch.no_grad()
def check_pooling(name: str, taps: tuple[str, ...] | None, image_size: int) -> None:
    """Raises UsageError where the classifier's input is not the mean over the map that is said to be averaged: fresh weights, noise."""
    classes, generator = 3, torch.Generator().manual_seed(0)
    model = build(name, classes).eval()
    info = describe(model, name, taps)
    assert info.roles is not None
    with Tapped(model, {"map": info.roles.pre_pool, "vector": f"{info.classifier}:in"}) as tapped:
        _, seen = tapped(torch.randn(2, 3, image_size, image_size, generator=generator))
    if not torch.allclose(seen["map"].mean((2, 3)), seen["vector"], rtol=1e-3, atol=1e-5):
        raise UsageError(
            f"{name}: what its last Linear reads is not the mean over {info.roles.pre_pool!r}, the map in front of its pooling; name the right one as "
            "`pool` in its attribute taps"
        )


def last_linear(model: nn.Module, name: str) -> str:
    """The path of the last Linear, whose input is read as the pooled vector. Raises UsageError where there is none."""
    paths = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not paths:
        raise UsageError(f"model: {name} has no Linear layer to give the logits; end it with one")
    return paths[-1]


def _not_found(name: str, reason: str) -> MissingError:
    return MissingError(
        f"model: {name}: {reason}; it is looked for beside the recipe, in the working folder and among installed packages: ls"
    )
