"""Networks that ship in another form than they are built in: a record of plain values says how.

{"kind": "catkd"}: the classifier has no bias. {"kind": "simkd", ...}: behind the last stage a projector, then the teacher's classifier.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from compress.core.errors import UsageError
from compress.models import catalog, custom
from compress.models.catalog import NetworkInfo


def projector(width_in: int, width: int, factor: int, pool: int | None = None) -> nn.Sequential:
    """SimKD's: 1x1 to width / factor, 3x3, 1x1 to `width`, each with BatchNorm and ReLU, no bias. (N, width_in, H, W) -> (N, width, H, W).

    `pool`: side that a larger map is averaged down to first. s m + 9 m^2 + m t + 4 m + 2 t parameters with m = t / factor.
    Source: Chen et al. 2022 (arXiv 2203.14001), section 3.3.
    """
    middle = width // factor
    layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(pool)] if pool is not None else []
    for before, after, kernel in ((width_in, middle, 1), (middle, middle, 3), (middle, width, 1)):
        layers += [nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


def with_modules(model: nn.Module, modules: Mapping[str, nn.Module]) -> nn.Module:
    """A copy of the network with other modules at the given paths; all else, parameters included, is shared with the original."""
    model = _shallow(model)
    for path, module in modules.items():
        holder, parts = model, path.split(".")
        for part in parts[:-1]:
            inner = _shallow(holder.get_submodule(part))
            setattr(holder, part, inner)
            holder = inner
        setattr(holder, parts[-1], module)
    return model


def _shallow(module: nn.Module) -> nn.Module:
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin


def without_bias(model: nn.Module, info: NetworkInfo) -> nn.Module:
    """CAT-KD's student: its classifier's weight alone."""
    linear = model.get_submodule(info.linear)
    assert isinstance(linear, nn.Linear)
    bare = nn.Linear(linear.in_features, linear.out_features, bias=False, device=linear.weight.device)
    bare.weight = linear.weight
    return with_modules(model, {info.linear: bare})


def with_projector(model: nn.Module, info: NetworkInfo, through: nn.Sequential, classifier: nn.Linear) -> nn.Module:
    """SimKD's student: last stage -> `through` -> pooling -> `classifier`; what the network had in between is gone."""
    assert info.roles is not None
    gone, pool = info.roles.after_last_stage, info.roles.pool
    if gone:
        modules: dict[str, nn.Module] = {gone[0]: through, **{path: nn.Identity() for path in gone[1:]}}
    elif pool:
        modules = {pool: nn.Sequential(through, model.get_submodule(pool))}
    elif info.roles.last_stage.endswith(":out"):
        stage = info.roles.last_stage.removesuffix(":out")
        modules = {stage: nn.Sequential(model.get_submodule(stage), through)}
    else:
        raise UsageError(
            f"distill.method: simkd has no place for its projector in {info.name}; choose another student or method"
        )
    return with_modules(model, {**modules, info.classifier: classifier})


def to_deployed(
    model: nn.Module, name: str, form: Mapping[str, Any] | None, stages: tuple[str, ...] | None = None
) -> nn.Module:
    """A freshly built network in the form that ships; None: as it is. `stages`: a recipe's `taps` of a network of one's own."""
    if form is None:
        return model
    info = custom.describe(model, name, stages) if catalog.is_custom(name) else catalog.info(name)
    if form["kind"] == "catkd":
        return without_bias(model, info)
    through = projector(form["width_in"], form["width"], form["factor"], form["pool"])
    return with_projector(model, info, through, nn.Linear(form["width"], form["classes"]))
