"""Check before any training that the layers in `quantize.float_layers` are layers of the student."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compress.core.errors import UsageError
from compress.core.records.training import Network, Normalization
from compress.pipeline.plan import candidates
from compress.recipe.loader import Loaded
from compress.recipe.schema import Distill, Export, Recipe

if TYPE_CHECKING:
    from onnx import ModelProto

IMAGES = 4  # for BatchNorm's statistics


def check(loaded: Loaded, settings: Recipe, *, classes: int, image_size: int) -> None:
    """Export the student with random weights and look for each named layer.

    Nothing is exported if no layer is named by its node, or if `student.choose` has not named a network yet.

    Args:
        loaded: The recipe.
        settings: The resolved recipe.
        classes: Number of classes.
        image_size: Side of the images in pixels.

    Raises:
        UsageError: A name is no layer's; with its place in the recipe.
    """
    wanted = [name for name in settings.quantize.float_layers if name not in ("first", "last")]
    if not wanted or settings.quantize.scheme == "none" or settings.student.choose is not None:
        return
    frame = candidates.InputSpec(classes, image_size, Normalization((0.5,) * 3, (0.25,) * 3))
    asked: dict[str, str | None] = {}  # by form
    for one in (settings, *_baseline(settings)):
        said = []
        for network in _forms(one, frame):
            form = str(network.deployed)
            if form not in asked:
                asked[form] = _missing(network, settings.export, wanted)
            said.append(asked[form])
        if None not in said:
            raise UsageError(f"{loaded.where('quantize.float_layers')}: quantize.float_layers: {said[0]}")


def _baseline(settings: Recipe) -> tuple[Recipe, ...]:
    """Return the recipe of the baseline, which is quantised in the same way, if one is asked for."""
    if not settings.distill.baseline or settings.distill.plain:
        return ()
    return (settings.model_copy(update={"distill": Distill(method=("none",))}),)


def _forms(settings: Recipe, frame: candidates.InputSpec) -> Iterator[Network]:
    """Yield the student as it ships, in the form that each candidate teacher would give it."""
    for one in settings.teacher.candidates:
        teacher = settings.teacher.model_copy(update={"candidates": (one,)})
        yield candidates.student(
            settings.model_copy(update={"teacher": teacher}), "student", settings.student.networks[0], frame
        ).network


def _missing(network: Network, config: Export, wanted: Sequence[str]) -> str | None:
    """Return what is wrong with the names; None if all are layers of the network's file."""
    import onnx

    from compress.pipeline.plan.untrained import untrained
    from export.graph.from_torch import to_onnx
    from export.int8.quantize import preprocessed
    from export.runtime import Contract, ExportError

    size = network.image_size
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, size, size, 3), dtype=np.uint8)
    names = tuple(map(str, range(network.classes)))
    contract = Contract(names, size, network.normalization.mean, network.normalization.std, config.input, "compress")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "student.onnx"
        try:
            to_onnx(untrained(network, images), path, contract, opset=config.opset, images=images)
        except ExportError:  # the convert stage reports it for the trained network
            return None
        missing = _unknown(onnx.load(str(path)), wanted)
        # The quantiser reads the names of the preprocessed model.
        return missing and _unknown(preprocessed(path), wanted) and missing


def _unknown(model: ModelProto, wanted: Sequence[str]) -> str | None:
    from export.graph.layers import resolve
    from export.runtime import ExportError

    try:
        resolve(model, wanted)
    except ExportError as error:
        return str(error).removeprefix("float_layers: ")
    return None
