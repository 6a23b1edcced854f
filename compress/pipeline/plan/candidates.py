"""The networks that a plan measures: teachers, students and others, each as it would ship."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.core.errors import UsageError
from compress.core.records.training import Network, Normalization
from compress.methods import compatibility
from compress.models import catalog, custom, timm_models
from compress.pipeline.plan.table import name_of
from compress.recipe.schema import Candidate, Choice, Recipe


@dataclass(frozen=True)
class PlanCandidate:
    """A network of a plan.

    `file`: an ONNX teacher's. `ships_as`: one sentence, where it ships in another form than its name suggests.
    """

    role: str  # teacher | student | choice | neighbour
    name: str
    model: str
    width: float | None
    network: Network
    file: Path | None = None
    ships_as: str | None = None


@dataclass(frozen=True)
class InputSpec:
    """The input that all networks share: classes, side of the recipe's images, their normalisation."""

    classes: int
    size: int
    normalization: Normalization


def teachers(recipe: Recipe, base: Path, frame: InputSpec) -> list[PlanCandidate]:
    """Return every candidate with its own input contract; of ONNX files those that exist."""
    found: dict[str, PlanCandidate] = {}
    for one in recipe.teacher.candidates:
        path = None if one.onnx is None else base / Path(one.onnx).expanduser()
        if path is None or path.is_file():
            subject = _teacher(one, path, frame)
            found.setdefault(subject.name, subject)
    return list(found.values())


def unmeasured(recipe: Recipe, base: Path) -> bool:
    """Return whether an ONNX teacher is missing, so that no limit can be compared with it."""
    return any(
        one.onnx is not None and not (base / Path(one.onnx).expanduser()).is_file() for one in recipe.teacher.candidates
    )


def _teacher(one: Candidate, path: Path | None, frame: InputSpec) -> PlanCandidate:
    side = one.image_size
    if path is not None:
        from export.graph.foreign_model import fixed_image_size

        side = side or fixed_image_size(path)
    enough = one.classes is not None and len(one.classes) >= frame.classes
    contract: dict[str, Any] = {
        "own_size": None if side == frame.size else side,
        "channels": one.channels,
        "outputs": len(one.classes) if enough and one.classes else None,
        "order": tuple(range(frame.classes)) if enough else None,  # which ones changes no time
    }
    at = f" at {side} pixels" if contract["own_size"] else ""
    if path is not None:
        contract |= {"black_box": True, "output": one.output}
        network = Network(one.title, None, frame.classes, frame.size, frame.normalization, **contract)
        return PlanCandidate("teacher", f"{one.title}{at}", one.title, None, network, path)
    return PlanCandidate(
        "teacher", f"{name_of(one.model, one.width)}{at}", one.model, one.width, _record(one, frame, **contract)
    )


def student(recipe: Recipe, role: str, one: Choice, frame: InputSpec) -> PlanCandidate:
    """Return a student as the recipe's method ships it. Raises UsageError if the method does not take it."""
    name = name_of(one.model, one.width)
    form, teacher = compatibility.shipped_spec(recipe, one, classes=frame.classes, image_size=frame.size)
    ships_as = None
    if form is not None:
        largest = f" with teacher {teacher}, the largest of its forms" if teacher else ""
        ships_as = f"{name} is timed as {recipe.distill.name} ships it{largest}."
    return PlanCandidate(role, name, one.model, one.width, _record(one, frame, deployed=form), ships_as=ships_as)


def neighbour(recipe: Recipe, one: Choice, frame: InputSpec) -> PlanCandidate | None:
    """Return another network as the student; None if the method does not take it."""
    try:
        return student(recipe, "neighbour", one, frame)
    except UsageError:
        return None


def _record(one: Choice | Candidate, frame: InputSpec, **more: Any) -> Network:
    width = catalog.resolve_width(catalog.info(one.model), one.width)
    source = custom.source_digest(one.model) if catalog.is_custom(one.model) else None  # changed code: another network
    if catalog.is_timm(one.model):
        source = timm_models.version()
    return Network(
        one.model, width, frame.classes, frame.size, frame.normalization, source=source, taps=one.taps, **more
    )
