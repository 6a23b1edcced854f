"""Networks whose deployed form differs from the built one, as described by a record of plain values.

{"kind": "catkd"}: the classifier has no bias. {"kind": "simkd", ...}: after the last stage come a projector and the
teacher's classifier.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from compress.core.errors import UsageError
from compress.models import catalog, custom, timm_models
from compress.models.catalog import NetworkInfo


def projector(width_in: int, width: int, factor: int, pool: int | None = None) -> nn.Sequential:
    """Build SimKD's projector, (N, width_in, H, W) -> (N, width, H, W).

    1x1 to width / factor, 3x3, 1x1 to `width`, each with BatchNorm and ReLU, without bias: with s = width_in, t = width
    and m = t / factor, s m + 9 m^2 + m t + 4 m + 2 t parameters. Source: Chen et al. 2022 (arXiv 2203.14001), section
    3.3.

    Args:
        width_in: Channels of the student's last stage.
        width: Channels of the teacher's last stage.
        factor: Reduction of the middle channels.
        pool: Side that a larger map is averaged down to first; None for no averaging.
    """
    middle = width // factor
    layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(pool)] if pool is not None else []
    for before, after, kernel in ((width_in, middle, 1), (middle, middle, 3), (middle, width, 1)):
        layers += [nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


def with_modules(model: nn.Module, modules: Mapping[str, nn.Module]) -> nn.Module:
    """Copy the network with other modules at the given paths; everything else, parameters included, is shared."""
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
    """Return CAT-KD's student: the classifier without its bias."""
    linear = model.get_submodule(info.linear)
    assert isinstance(linear, nn.Linear)
    bare = nn.Linear(linear.in_features, linear.out_features, bias=False, device=linear.weight.device)
    bare.weight = linear.weight
    return with_modules(model, {info.linear: bare})


def with_projector(model: nn.Module, info: NetworkInfo, through: nn.Sequential, classifier: nn.Linear) -> nn.Module:
    """Return SimKD's student: last stage -> `through` -> pooling -> `classifier`.

    Args:
        model: The plain student.
        info: Its entry in the catalogue.
        through: The projector.
        classifier: The teacher's classifier.

    Raises:
        UsageError: The network has no place for a projector.
    """
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
    """Bring a freshly built network into its deployed form.

    Args:
        model: The built network.
        name: Its name in the recipe.
        form: How the deployed form differs; None if it does not.
        stages: The recipe's `taps` of the user's own network.
    """
    if form is None:
        return model
    info = catalog.info(name)
    if info.family == "own":
        info = custom.describe(model, name, stages)
    elif info.family == "timm":
        info = timm_models.describe(model, name)
    if form["kind"] == "catkd":
        return without_bias(model, info)
    through = projector(form["width_in"], form["width"], form["factor"], form["pool"])
    return with_projector(model, info, through, nn.Linear(form["width"], form["classes"]))
