"""The recipe, data and machine that all networks of a plan share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compress.core.records.training import CalibrationData, Normalization, Prepared
from compress.core.store import Store
from compress.pipeline.plan.candidates import InputSpec
from compress.pipeline.plan.untrained import PLAN_IMAGES
from compress.recipe.schema import KNOWN_CLASSES, Recipe
from compress.stages import data
from compress.stages.convert import CONVERT
from compress.stages.quantize import QUANTIZE, resolve_targets
from export.runtime import host

UNKNOWN_CLASSES = 10  # assumed where the data are not here


@dataclass(frozen=True)
class PlanContext:
    """What all networks of a plan share."""

    recipe: Recipe
    store: Store
    classes: int
    normalization: Normalization
    images: CalibrationData | None  # None: the data are not here, and seeded noise stands in
    target: str | None  # of the int8 file; None: float ships
    host: Mapping[str, Any]
    versions: Mapping[str, Any]
    where: Mapping[str, str]  # requirement -> path:line:column in the recipe
    base: Path  # where the recipe's relative paths begin

    @property
    def size(self) -> int:
        """Side of the input in pixels."""
        return self.recipe.data.image_size or 32

    @property
    def input_spec(self) -> InputSpec:
        """The input that all networks share."""
        return InputSpec(self.classes, self.size, self.normalization)


def build_context(
    settings: Recipe,
    prepared: Prepared | None,
    store: Store,
    versions: Mapping[str, str],
    where: Mapping[str, str],
    base: Path,
) -> PlanContext:
    """Gather what the networks of a plan share.

    Args:
        settings: The resolved recipe.
        prepared: Its data; None: they are not here.
        store: Where networks are exported and timed.
        versions: Versions of torch, onnx and onnxruntime.
        where: Requirement -> path:line:column in the recipe.
        base: Where the recipe's relative paths begin.

    Raises:
        UsageError: int8 has no rule for this machine.
    """
    config, images = settings.data, None
    if prepared is not None:
        normalization = prepared.normalization
        images = replace(data.calibration(prepared, config), count=min(config.calibration, PLAN_IMAGES))
    elif config.normalize:
        normalization = Normalization(config.normalize.mean, config.normalize.std)
    else:
        normalization = Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    int8 = settings.quantize.scheme != "none"
    return PlanContext(
        recipe=settings,
        store=store,
        classes=len(prepared.classes) if prepared else KNOWN_CLASSES.get(config.source, UNKNOWN_CLASSES),
        normalization=normalization,
        images=images,
        target=resolve_targets(settings.quantize, settings.device)[0] if int8 else None,
        host=host(),
        # Other versions of the stages would write other files.
        versions={**versions, "convert": CONVERT.version, "quantize": QUANTIZE.version},
        where=where,
        base=base,
    )
