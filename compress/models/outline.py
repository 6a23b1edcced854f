"""What a distillation method may know of a network: its classes, the maps that can be read, their shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from compress.core.errors import StageError, UsageError
from compress.models import catalog, custom
from compress.models.catalog import NetworkInfo
from compress.models.meta import shapes_only
from compress.models.taps import Tapped


@dataclass(frozen=True)
class Outline:
    """A network's maps by name, without the batch dimension: (C, H, W), (d,) or, of "head", the classifier's weight (K, d).

    Names: "pooled" (the classifier's input), "head", "pre_pool", "last_stage", "stages_post.1" and so on, "stages_pre.1" and so on (see
    `roles.Roles`). A network without a table of roles has "pooled" and, where one Linear is its classifier, "head" alone.
    `taps`: where `Tapped` reads each. `classifier`: weight (K, d) and bias (K,); `norms`: gamma and beta (C,) of the BatchNorm behind each of
    stages_pre; both detached.
    """

    name: str
    classes: int
    shapes: Mapping[str, tuple[int, ...]]
    taps: Mapping[str, str] = field(default_factory=dict)
    classifier: tuple[Tensor, Tensor] | None = None
    norms: tuple[tuple[Tensor, Tensor], ...] = ()
    info: NetworkInfo | None = None

    @property
    def entry(self) -> NetworkInfo:
        """Where its modules are: the catalogue's entry, or what is known of a network of one's own."""
        return self.info or catalog.info(self.name)

    def shape(self, name: str, why: str) -> tuple[int, ...]:
        """The shape of a map. Raises UsageError, naming the network and `why` it is needed."""
        if name not in self.shapes:
            what = "a single Linear as classifier" if name == "head" else f"the map {name!r}"
            if catalog.is_custom(self.name):
                raise UsageError(
                    f"{why} needs {what}, which {self.name} does not name; name its stages in `taps`, and what pools them in its attribute taps"
                )
            raise UsageError(
                f"{why} needs {what}, which the catalogue does not give for {self.name}; choose another method or network"
            )
        return self.shapes[name]

    def stages(self, role: str, why: str) -> list[tuple[int, ...]]:
        """Shapes (C, H, W) of all of "stages_post" or "stages_pre", shallow to deep. Raises UsageError where there are none."""
        self.shape(f"{role}.1", why)
        return [
            self.shapes[f"{role}.{number}"]
            for number in range(1, 1 + sum(name.startswith(f"{role}.") for name in self.shapes))
        ]


def outline(
    name: str,
    *,
    classes: int,
    width: float | None,
    image_size: int,
    model: nn.Module | None = None,
    stages: tuple[str, ...] | None = None,
) -> Outline:
    """The outline of a network, probed without weights; weights are read off `model` where it is given.

    `stages`: a recipe's `taps` of a network of one's own. Raises UsageError where such a network has not what they name.
    """
    info = catalog.info(name)
    empty = shapes_only(name, classes=classes, width=width)
    if info.family == "own":
        info = custom.describe(empty, name, stages)
    block, last = empty.get_submodule(info.classifier), empty.get_submodule(info.linear)
    assert isinstance(last, (nn.Linear, nn.Conv2d))  # the catalogue says so; a test builds every entry
    single = [module for module in block.modules() if isinstance(module, nn.Linear)] == [last]
    taps = {tap: text for tap, text in catalog.taps(info).items() if tap != "head" or single}
    try:
        with Tapped(empty, taps) as tapped, torch.no_grad():
            _, seen = tapped(torch.zeros(1, 3, image_size, image_size, device=last.weight.device))
    except StageError as error:  # of the catalogue's taps, none
        raise UsageError(str(error)) from error
    shapes = {tap: tuple(value.shape) if tap == "head" else tuple(value.shape[1:]) for tap, value in seen.items()}
    if info.family == "own":
        shapes = _maps(name, shapes)
        taps = {tap: text for tap, text in taps.items() if tap in shapes}
    model = model or empty.to("meta")  # nothing is known of its weights
    return Outline(
        name,
        classes,
        shapes,
        taps,
        _affine(model, info.linear) if single else None,
        tuple(_affine(model, path) for path in (info.roles.bn_before_relu if info.roles else ())),
        info,
    )


def _maps(name: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Those of a network of one's own; the averaged map only where it has as many channels as the vector. Raises UsageError for a stage that is no map."""
    for tap, shape in shapes.items():
        if tap.startswith("stages_") and len(shape) != 3:
            raise UsageError(
                f"{name}: stage {tap.split('.')[1]} of its taps gives {shape} a picture, expected a map (C, H, W)"
            )
    averaged = shapes.get("pre_pool", ())
    fits = len(averaged) == 3 and averaged[:1] == shapes["pooled"]
    return {tap: shape for tap, shape in shapes.items() if fits or tap not in ("pre_pool", "last_stage")}


def _affine(model: nn.Module, path: str) -> tuple[Tensor, Tensor]:
    """Weight and bias; a Linear of one's own without a bias has zeros."""
    module = model.get_submodule(path)
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    assert isinstance(bias, Tensor)
    return weight.detach().clone(), bias.detach().clone()
