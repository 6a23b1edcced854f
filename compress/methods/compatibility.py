"""Whether a recipe's method accepts its networks, and what it would ship, checked before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from compress import models
from compress.core.errors import MissingError, UsageError
from compress.methods import Method, build_method
from compress.models import catalog, custom, timm_models
from compress.models.count import macs, params
from compress.models.deployed import to_deployed
from compress.models.meta import meta_device
from compress.models.outline import Outline, outline
from compress.models.size_warning import size_increase_warning
from compress.recipe.loader import Loaded
from compress.recipe.schema import Candidate, Choice, Recipe


def check_pairs(loaded: Loaded, settings: Recipe, *, classes: int, image_size: int) -> list[str]:
    """Build the method for every pair of student and teacher, on the meta device: no memory, no weights.

    Args:
        loaded: the recipe, for the places in messages.
        settings: its resolved settings.
        classes: of the data.
        image_size: of the data, in pixels.

    Returns:
        A sentence for each pair whose student ships larger than the recipe's.

    Raises:
        UsageError: the method does not accept a pair; the message names place and reason.
    """
    if len(settings.distill.candidates) > 1:
        each = [settings.model_copy(update={"distill": one}) for one in settings.distill.candidates]
        return [note for one in each for note in check_pairs(loaded, one, classes=classes, image_size=image_size)]
    if settings.distill.plain:
        return []
    networks = networks_of(settings)
    teachers = [
        outline_at(loaded, place, one, classes, image_size) for place, one in networks if isinstance(one, Candidate)
    ]
    notes = []
    for place, choice in ((place, one) for place, one in networks if isinstance(one, Choice)):
        student = outline_at(loaded, place, choice, classes, image_size)
        for teacher in teachers:
            try:
                method, plain, shipped = _build_pair(settings, choice, student, teacher, classes, image_size)
            except UsageError as error:
                raise UsageError(
                    f"{loaded.where('distill.method')}: {error} (student {student.name}, teacher {teacher.name})"
                ) from error
            if settings.train.batch_size < method.smallest_batch():
                raise UsageError(
                    f"{loaded.where('train.batch_size')}: train.batch_size: {settings.distill.name} needs at least "
                    f"{method.smallest_batch()} images per batch, got {settings.train.batch_size} "
                    "(a smaller last batch of an epoch is left out by itself)"
                )
            if method.deployed_spec() is None:
                continue
            sizes = [(params(one), macs(one, image_size)) for one in (plain, shipped)]
            if sentence := size_increase_warning(choice.model, *sizes):
                notes.append(f"{settings.distill.name} with teacher {teacher.name}: {sentence}")
    _check_pooling(loaded, settings, method, image_size)
    return notes


def shipped_spec(settings: Recipe, one: Choice, *, classes: int, image_size: int) -> tuple[dict[str, Any] | None, str]:
    """Return how the student that the recipe's method ships differs from the plain one.

    Args:
        settings: the recipe's resolved settings.
        one: the student.
        classes: of the data.
        image_size: of the data, in pixels.

    Returns:
        What `Method.deployed_spec` returns, None: not at all. Where several teachers give several answers, the one with
        the most MACs and the name of its teacher; otherwise an empty name.

    Raises:
        UsageError: the method does not accept the pair.
    """
    if settings.distill.plain or len(settings.distill.candidates) > 1:  # auto tries what ships the plain student
        return None, ""
    found: list[tuple[int, dict[str, Any], str]] = []
    student = _outline(one, classes, image_size)
    for candidate in settings.teacher.candidates:
        teacher = _outline(candidate, classes, image_size)
        method, _, shipped = _build_pair(settings, one, student, teacher, classes, image_size)
        spec = method.deployed_spec()
        if spec is not None:
            found.append((macs(shipped, image_size), spec, teacher.name))
    if not found:
        return None, ""
    _, spec, name = max(found, key=lambda entry: entry[0])
    return spec, name if len({str(entry[1]) for entry in found}) > 1 else ""


def _build_pair(
    settings: Recipe, one: Choice, student: Outline, teacher: Outline, classes: int, image_size: int
) -> tuple[Method, nn.Module, nn.Module]:
    """Build the method, the plain student and the network that ships, without weights."""
    labels = torch.arange(classes)
    with meta_device():
        method = build_method(
            settings.distill, student=student, teacher=teacher, train_labels=labels, train_index=labels
        )
        plain, copy = (
            models.build(one.model, classes=classes, width=one.width, image_size=image_size) for _ in range(2)
        )
        return method, plain, to_deployed(copy, one.model, method.deployed_spec(), one.taps)


def networks_of(settings: Recipe) -> list[tuple[str, Candidate | Choice]]:
    """Return every network of a recipe with the key of the section that names it."""
    teachers: list[tuple[str, Candidate | Choice]] = [
        (f"teacher.candidates.{number}", one) for number, one in enumerate(settings.teacher.candidates)
    ]
    several = settings.student.choose is not None
    students = [
        (f"student.choose.from.{number}" if several else "student", one)
        for number, one in enumerate(settings.student.networks)
    ]
    return [*teachers, *students]


def outline_at(loaded: Loaded, place: str, one: Choice | Candidate, classes: int, image_size: int) -> Outline:
    """Return the outline of one of a recipe's networks.

    Args:
        loaded: the recipe, for the place in a message.
        place: key of the section that names the network.
        one: the network.
        classes: of the data.
        image_size: of the data, in pixels.

    Raises:
        UsageError: a custom network does not have what its taps name.
    """
    with locate_errors(loaded, place, one):
        return _outline(one, classes, image_size)


def _outline(one: Choice | Candidate, classes: int, image_size: int) -> Outline:
    if isinstance(one, Candidate) and one.onnx is not None:
        return Outline(one.title, classes, {})
    size = _input_size(one, image_size)
    catalog.check_image_size(catalog.info(one.model), size)
    return outline(one.model, classes=classes, width=one.width, image_size=size, stages=one.taps)


def _input_size(one: Choice | Candidate, image_size: int) -> int:
    return (one.image_size if isinstance(one, Candidate) else None) or image_size


@contextmanager
def locate_errors(loaded: Loaded, place: str, one: Choice | Candidate) -> Iterator[None]:
    """Add the place that names a custom network, or timm's, to errors about it.

    Args:
        loaded: the recipe.
        place: key of the section that names the network.
        one: the network.
    """
    try:
        yield
    except (UsageError, MissingError) as error:
        if not catalog.is_custom(one.model) and not catalog.is_timm(one.model):
            raise
        key = f"{place}.{'taps' if one.taps else 'model'}"
        kind = MissingError if isinstance(error, MissingError) else UsageError
        raise kind(f"{loaded.where(key)}: {key}: {error}") from error


def _check_pooling(loaded: Loaded, settings: Recipe, method: Method, image_size: int) -> None:
    """Check that a custom network, or timm's, averages its last map, where the method assumes that it does."""
    for place, one in networks_of(settings):
        taps = method.teacher_taps if isinstance(one, Candidate) else method.student_taps
        derived = catalog.is_custom(one.model) or catalog.is_timm(one.model)
        if derived and {"pre_pool", "last_stage"}.intersection(taps):
            with locate_errors(loaded, place, one):
                _check_average(one, _input_size(one, image_size))


def _check_average(one: Choice | Candidate, image_size: int) -> None:
    if catalog.is_timm(one.model):
        timm_models.check_pooling(one.model, image_size)
    else:
        custom.check_pooling(one.model, one.taps, image_size)
