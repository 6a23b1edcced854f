"""What a distillation method may know about a network: its classes, and the maps that it can read with their shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from compress.core.errors import StageError, UsageError
from compress.models import catalog, custom, timm_models
from compress.models.catalog import NetworkInfo
from compress.models.meta import shapes_only
from compress.models.taps import Tapped

_SIZE_ADVICE = "set data.image_size, or a candidate's image_size, to a size that it takes"


@dataclass(frozen=True)
class Outline:
    """A network's maps by name.

    The names are "pooled" (the classifier's input), "head" (the classifier's weight), "pre_pool", "last_stage",
    "stages_post.1", ... and "stages_pre.1", ... (see `tap_tables.Roles`). A network without roles has only "pooled"
    and, if one Linear is its classifier, "head".

    Attributes:
        name: The network.
        classes: Number of classes K.
        shapes: Shape of each map without the batch dimension, (C, H, W) or (d,); of "head", (K, d).
        taps: Where `Tapped` reads each map.
        classifier: Weight (K, d) and bias (K,), detached; None if the classifier is not a single Linear.
        norms: Gamma and beta (C,), detached, of the BatchNorm before each of stages_pre.
        info: The network's entry, if it is not the catalogue's.
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
        """Return the catalogue's entry, or the description of the user's own or of timm's network."""
        return self.info or catalog.info(self.name)

    def shape(self, name: str, why: str) -> tuple[int, ...]:
        """Return the shape of a map. Raises UsageError with `why` it is needed if the network has no such map."""
        if name not in self.shapes:
            what = "a single Linear as classifier" if name == "head" else f"the map {name!r}"
            if catalog.is_custom(self.name):
                raise UsageError(
                    f"{why} needs {what}, which {self.name} does not name; name its stages in `taps`, and the module "
                    "that pools them in its attribute taps"
                )
            raise UsageError(
                f"{why} needs {what}, which the catalogue does not have for {self.name}; "
                "choose another method or network"
            )
        return self.shapes[name]

    def stages(self, role: str, why: str) -> list[tuple[int, ...]]:
        """Return the shapes (C, H, W) of "stages_post" or "stages_pre", shallow to deep. Raises UsageError if none."""
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
    """Probe a network for its outline, without weights.

    Args:
        name: See `models.build`.
        classes: Number of classes.
        width: Width multiplier; None for the default.
        image_size: Side of the images, in pixels.
        model: A built network that the classifier's and BatchNorms' values are read from; None to leave them unknown.
        stages: The recipe's `taps` of the user's own network.

    Raises:
        UsageError: The user's own network does not have what `stages` names.
    """
    info = catalog.info(name)
    empty = shapes_only(name, classes=classes, width=width, image_size=image_size)
    described = info.family in ("own", "timm")
    if info.family == "own":
        info = custom.describe(empty, name, stages)
    elif info.family == "timm":
        info = timm_models.describe(empty, name)
    block, last = empty.get_submodule(info.classifier), empty.get_submodule(info.linear)
    assert isinstance(last, (nn.Linear, nn.Conv2d))  # true of every entry, by test
    single = [module for module in block.modules() if isinstance(module, nn.Linear)] == [last]
    taps = {tap: text for tap, text in catalog.taps(info).items() if tap != "head" or single}
    derived = ("pre_pool", "last_stage") if described and not custom.names_pool(empty) else ()
    x = torch.zeros(1, 3, image_size, image_size, device=last.weight.device)
    try:
        seen = _seen(empty, taps, x)
    except StageError as error:  # only for the user's own network: by test, the catalogue's taps are right
        taps = {tap: text for tap, text in taps.items() if tap not in derived}
        try:  # a map that nobody named may not be readable; methods that need it say so
            seen = _seen(empty, taps, x)
        except StageError:
            raise UsageError(str(error)) from error
    except (RuntimeError, AssertionError, ValueError) as error:  # raised by the network's own code
        if not described:
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UsageError(f"{name} does not take images of {image_size} pixels ({reason}); {_SIZE_ADVICE}") from error
    shapes = {tap: tuple(value.shape) if tap == "head" else tuple(value.shape[1:]) for tap, value in seen.items()}
    if described:
        shapes = _maps(name, shapes)
        taps = {tap: text for tap, text in taps.items() if tap in shapes}
    model = model or empty.to("meta")  # its weights are unknown
    return Outline(
        name,
        classes,
        shapes,
        taps,
        _affine(model, info.linear) if single else None,
        tuple(_affine(model, path) for path in (info.roles.bn_before_relu if info.roles else ())),
        info,
    )


@torch.no_grad()
def _seen(model: nn.Module, taps: Mapping[str, str], x: Tensor) -> dict[str, Tensor]:
    with Tapped(model, taps) as tapped:
        return tapped(x)[1]


def _maps(name: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the maps of the user's own or timm's network; the pooled map only if it fits the pooled vector.

    Raises UsageError for a stage that is not a map.
    """
    for tap, shape in shapes.items():
        if tap.startswith("stages_") and len(shape) != 3:
            raise UsageError(
                f"{name}: stage {tap.split('.')[1]} of its taps has the shape {shape} for one image; "
                "it must be a map (C, H, W)"
            )
    averaged = shapes.get("pre_pool", ())
    fits = len(averaged) == 3 and averaged[:1] == shapes["pooled"]
    return {tap: shape for tap, shape in shapes.items() if fits or tap not in ("pre_pool", "last_stage")}


def _affine(model: nn.Module, path: str) -> tuple[Tensor, Tensor]:
    """Return weight and bias, detached; zeros for a module without bias."""
    module = model.get_submodule(path)
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    assert isinstance(bias, Tensor)
    return weight.detach().clone(), bias.detach().clone()
