"""The conventions by which networks take images: tried one after another where a teacher answers at chance level.

Loads no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from compress.verdict.diagnosis import IMAGENET
from compress.verdict.intervals import wilson

# All conventions are tried on the first number of images, the best ones on the second.
SCREENING_IMAGES, JUDGING_IMAGES = 64, 256
JUDGED = 3
NONE_FITS = "no known convention of input and class order fits"
Triple = tuple[float, float, float]
Order = tuple[int, ...] | None  # which output stands for each class; None: all, in order


@dataclass(frozen=True)
class Convention:
    """How a network takes pixels. `mean`, `std`: of pixels in [0, 1], red first; `channels`: rgb or bgr."""

    name: str
    mean: Triple
    std: Triple
    channels: str

    def lines(self) -> str:
        """Return the keys of the candidate in a recipe."""
        mean, std = (f"[{', '.join(f'{value:.6g}' for value in values)}]" for values in (self.mean, self.std))
        blue = ", channels: bgr" if self.channels == "bgr" else ""
        return f"normalize: {{mean: {mean}, std: {std}}}{blue}"


RANGES: tuple[tuple[str, Triple, Triple], ...] = (
    ("ImageNet's mean and deviation (torchvision, timm, Keras `torch`)", *IMAGENET),
    ("-1 to 1 (timm's 0.5, Keras `tf`)", (0.5,) * 3, (0.5,) * 3),
    ("0 to 1 (ultralytics)", (0.0,) * 3, (1.0,) * 3),
    ("0 to 255", (0.0,) * 3, (1 / 255,) * 3),
    (
        "0 to 255 less ImageNet's mean",
        (123.68 / 255, 116.779 / 255, 103.939 / 255),
        (1 / 255,) * 3,
    ),
)
CONVENTIONS = tuple(
    Convention(f"{name}{', BGR' if channels == 'bgr' else ''}", mean, std, channels)
    for channels, (name, mean, std) in product(("rgb", "bgr"), RANGES)
)
CAFFE = CONVENTIONS[-1].name


@dataclass(frozen=True)
class FittingConvention:
    """The convention that a network seems to expect.

    `classes`: its classes in their order, where they are not the data's. `top1`: a fraction of `images` images.
    """

    convention: Convention
    order_name: str
    classes: tuple[str, ...] | None
    top1: float
    images: int

    def sentence(self) -> str:
        """Describe the convention with the lines to copy into the recipe."""
        ordered = f" and its classes in {self.order_name} order" if self.classes else ""
        listed = ", ".join(_quoted(name) for name in self.classes or ())
        keras = " (Keras `caffe`)" if self.convention.name == CAFFE else ""
        lines = self.convention.lines() + (f", classes: [{listed}]" if self.classes else "")
        pixels = f"pixels of {self.convention.name}{keras}"
        return (
            f"with {pixels}{ordered} top-1 is {self.top1:.4f} on {self.images:,} validation images; "
            f"write into the candidate: {lines}"
        )


def _quoted(name: str) -> str:
    """Return a class name as YAML reads it back inside brackets."""
    plain = re.fullmatch(r"[A-Za-z_][\w -]*\w|[A-Za-z_]", name) and name.lower() not in (
        "yes",
        "no",
        "on",
        "off",
        "true",
        "false",
        "null",
    )
    return name if plain else "'" + name.replace("'", "''") + "'"


def chance(labels: NDArray[np.integer]) -> float:
    """Return the share of the commonest class."""
    return float(np.bincount(labels).max() / len(labels))


def class_orders(classes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return orders in which a network may have the classes, by what they are called: "" is the data's own."""
    found = {"": tuple(classes)}
    for name, key in (("natural", _natural), ("alphabetical", str), ("case-blind alphabetical", str.casefold)):
        order = tuple(sorted(classes, key=key))
        if order not in found.values():
            found[name] = order
    return found


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Return a sorting key with numbers by their value: class2 before class10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part.casefold()) for part in re.findall(r"\d+|\D+", name)]


def find(
    answers: Callable[[Convention, NDArray[np.intp]], NDArray[np.floating]],
    labels: NDArray[np.integer],
    classes: Sequence[str],
    order: Order,
) -> FittingConvention | None:
    """Find the convention with which a network at chance level answers well.

    Args:
        answers: A convention and places of images -> the network's outputs for them, (N, outputs), in its own order.
        labels: Of all images, (M,).
        classes: The data's.
        order: Which output stands for each class, where the recipe says so; None: other orders are tried, too.

    Returns:
        The convention; None where none lifts the accuracy well above chance.
    """
    shuffled = np.random.default_rng(0).permutation(len(labels))
    screened, judged = shuffled[:SCREENING_IMAGES], shuffled[:JUDGING_IMAGES]
    named = {"": tuple(classes)} if order is not None else class_orders(classes)
    positions = {
        name: order if order is not None else tuple(listed.index(one) for one in classes)
        for name, listed in named.items()
    }

    def scores(convention: Convention, places: NDArray[np.intp]) -> dict[str, float]:
        """Return the accuracy in each order of the classes."""
        outputs = answers(convention, places)
        if not np.isfinite(outputs).all():
            return dict.fromkeys(positions, 0.0)
        return {
            name: float((outputs[:, list(columns)].argmax(axis=1) == labels[places]).mean())
            for name, columns in positions.items()
        }

    def best(convention: Convention) -> float:
        return max(scores(convention, screened).values())

    ranked = sorted(CONVENTIONS, key=best, reverse=True)[:JUDGED]
    results = [(score, one, name) for one in ranked for name, score in scores(one, judged).items()]
    score, convention, name = max(results, key=lambda result: result[0])
    share = chance(labels)
    if wilson(round(score * len(judged)), len(judged))[0] < share + (1 - share) / 4:
        return None
    return FittingConvention(convention, name, named[name] if name else None, score, len(judged))
