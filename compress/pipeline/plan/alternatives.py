"""Find other networks to try beside a student: its family in other widths, and other families of similar cost."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from compress import models
from compress.core.store import Context, Stage
from compress.models import catalog, count
from compress.models.meta import meta_device
from compress.pipeline.plan.table import name_of
from compress.recipe.schema import Choice

WIDTHS = (0.25, 0.35, 0.5, 0.75, 1.0, 1.4)  # tried of a network that takes any width
SIMILAR_MACS = 8.0  # largest ratio of multiply-accumulates between the student and an alternative
SIMILAR_SIDES = 1.5  # largest ratio of the image sides that networks are made for


@dataclass(frozen=True)
class Neighbour:
    """A network by name and width."""

    model: str
    width: float | None


@dataclass(frozen=True)
class Neighbours:
    """The student's family, then the others, the nearest first."""

    networks: tuple[Neighbour, ...]


def find_alternatives(
    config: Choice,
    *,
    context: Context,
    size: int,
    classes: int,
    most: int,
    without: tuple[str, ...],
    known: tuple[str, ...],
) -> Neighbours:
    """Find networks whose MACs come near the student's: at most half of its own family, one of each other family.

    Args:
        config: The student.
        context: Of the stage.
        size: Side of the images in pixels.
        classes: Number of classes.
        most: At most so many networks.
        without: Names that are measured anyway.
        known: The catalogue; part of the key only.
    """
    own = _macs(config, classes, size)
    without = (*without, name_of(config.model, config.width))
    near = []
    for network in _suitable(catalog.info(config.model), size):
        for one in _in_widths(network):
            distance = abs(math.log(_macs(one, classes, size) / own))
            if distance <= math.log(SIMILAR_MACS) and name_of(one.model, one.width) not in without:
                near.append((distance, one))
    near.sort(key=lambda pair: pair[0])
    family = [one for _, one in near if _family(one.model) == _family(config.model)][: (most + 1) // 2]
    others: dict[str, Choice] = {}
    for _, one in near:
        if _family(one.model) != _family(config.model):
            others.setdefault(_family(one.model), one)
    return Neighbours(tuple(Neighbour(one.model, one.width) for one in [*family, *others.values()][:most]))


def _suitable(student: catalog.NetworkInfo, size: int) -> Iterator[catalog.NetworkInfo]:
    """Yield networks for images of about this side, and those of the student's kind."""
    apart = {network.name: abs(math.log(network.default_size / size)) for network in catalog.NETWORKS.values()}
    nearest = min(apart.values()) + math.log(SIMILAR_SIDES)
    for network in catalog.NETWORKS.values():
        if network.min_size <= size and (network.family == student.family or apart[network.name] <= nearest):
            yield network


def _in_widths(network: catalog.NetworkInfo) -> Iterator[Choice]:
    widths: tuple[float | None, ...] = network.width_choices or ((None,) if network.widths is None else WIDTHS)
    return (Choice(model=network.name, width=width) for width in widths)


def _family(name: str) -> str:
    """Return torchvision/shufflenet_v2 for torchvision/shufflenet_v2_x0_5, resnet for resnet8x4, wrn for wrn_16_2."""
    return re.sub(
        r"_x\d_\d$|_small$|_large$|_b\d$|(?<=resnet)\d.*$|(?<=squeezenet)\d.*$|(?<=_lite)\d$|(?<=vgg)\d+$|(?<=wrn)_.*$",
        "",
        name,
    )


def _macs(one: Choice, classes: int, size: int) -> int:
    with meta_device():
        model = models.build(one.model, classes=classes, width=one.width, image_size=size)
    return count.macs(model, size)


FIND_ALTERNATIVES = Stage("plan-neighbours", 1, find_alternatives, Neighbours)
