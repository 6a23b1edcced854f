"""Whether a recipe's method takes its networks, and what it would ship, asked before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from compress import models
from compress.core.errors import UsageError
from compress.methods import Method, build_method
from compress.models import catalog, custom
from compress.models.count import macs, params
from compress.models.deployed import to_deployed
from compress.models.meta import meta_device
from compress.models.outline import Outline, outline
from compress.models.size_warning import size_increase_warning
from compress.recipe.loader import Loaded
from compress.recipe.schema import Candidate, Choice, Recipe


def check(loaded: Loaded, settings: Recipe, *, classes: int, image_size: int) -> list[str]:
    """Build the method for every possible pair on the meta device: no memory, no weights. Sentences on students that ship larger than they are.

    Raises UsageError with place and reason where a method does not take a pair.
    """
    if settings.distill.plain:
        return []
    teachers = [
        outlined(loaded, place, one, classes, image_size)
        for place, one in places(settings)
        if isinstance(one, Candidate)
    ]
    notes = []
    for place, choice in ((place, one) for place, one in places(settings) if isinstance(one, Choice)):
        student = outlined(loaded, place, choice, classes, image_size)
        for teacher in teachers:
            try:
                method, plain, ships = _built(settings, choice, student, teacher, classes)
            except UsageError as error:
                raise UsageError(
                    f"{loaded.where('distill.method')}: {error} (student {student.name}, teacher {teacher.name})"
                ) from error
            if settings.train.batch_size < method.smallest_batch():
                why = f"{settings.distill.name} needs at least {method.smallest_batch()} pictures a batch, got {settings.train.batch_size}"
                raise UsageError(
                    f"{loaded.where('train.batch_size')}: train.batch_size: {why} (a smaller last batch of an epoch is left out by itself)"
                )
            sizes = (
                [(params(one), macs(one, image_size)) for one in (plain, ships)]
                if method.deployed_spec() is not None
                else []
            )
            if sizes and (sentence := size_increase_warning(choice.model, sizes[0], sizes[1])):
                notes.append(f"{settings.distill.name} with teacher {teacher.name}: {sentence}")
    _prove(loaded, settings, method, image_size)
    return notes


def shipped_form(settings: Recipe, one: Choice, *, classes: int, image_size: int) -> tuple[dict[str, Any] | None, str]:
    """The form in which the recipe's method ships a student, None: as it is; of several teachers' forms the one with most MACs, and that teacher.

    Raises UsageError where the method does not take the pair.
    """
    if settings.distill.plain:
        return None, ""
    found: list[tuple[int, dict[str, Any], str]] = []
    student = _shape(one, classes, image_size)
    for candidate in settings.teacher.candidates:
        teacher = _shape(candidate, classes, image_size)
        method, _, ships = _built(settings, one, student, teacher, classes)
        form = method.deployed_spec()
        if form is not None:
            found.append((macs(ships, image_size), form, teacher.name))
    if not found:
        return None, ""
    _, form, name = max(found, key=lambda entry: entry[0])
    return form, name if len({str(entry[1]) for entry in found}) > 1 else ""


def _built(
    settings: Recipe, one: Choice, student: Outline, teacher: Outline, classes: int
) -> tuple[Method, nn.Module, nn.Module]:
    """The method, the plain student and what ships of it, without weights. Raises UsageError where the method does not take the pair."""
    labels = torch.arange(classes)
    with meta_device():
        method = build_method(
            settings.distill, student=student, teacher=teacher, train_labels=labels, train_index=labels
        )
        plain, copy = (models.build(one.model, classes=classes, width=one.width) for _ in range(2))
        return method, plain, to_deployed(copy, one.model, method.deployed_spec(), one.taps)


def places(settings: Recipe) -> list[tuple[str, Candidate | Choice]]:
    """Every network of a recipe, with the section that names it."""
    found: list[tuple[str, Candidate | Choice]] = [
        (f"teacher.candidates.{number}", one) for number, one in enumerate(settings.teacher.candidates)
    ]
    several = settings.student.choose is not None
    return [
        *found,
        *(
            (f"student.choose.from.{number}" if several else "student", one)
            for number, one in enumerate(settings.student.networks)
        ),
    ]


def outlined(loaded: Loaded, place: str, one: Choice | Candidate, classes: int, image_size: int) -> Outline:
    """The outline of one of a recipe's networks. Raises UsageError with the place where a network of one's own has not what its taps name."""
    with own_at(loaded, place, one):
        return _shape(one, classes, image_size)


def _shape(one: Choice | Candidate, classes: int, image_size: int) -> Outline:
    if isinstance(one, Candidate) and one.onnx is not None:
        return Outline(one.title, classes, {})
    size = (one.image_size if isinstance(one, Candidate) else None) or image_size
    catalog.check_image_size(catalog.info(one.model), size)
    return outline(one.model, classes=classes, width=one.width, image_size=size, stages=one.taps)


@contextmanager
def own_at(loaded: Loaded, place: str, one: Choice | Candidate) -> Iterator[None]:
    """Mistakes in a network of one's own are said with the place that names it."""
    try:
        yield
    except UsageError as error:
        if not catalog.is_custom(one.model):
            raise
        key = f"{place}.{'taps' if one.taps else 'model'}"
        raise UsageError(f"{loaded.where(key)}: {key}: {error}") from error


def _prove(loaded: Loaded, settings: Recipe, method: Method, image_size: int) -> None:
    """Networks of one's own, where the method takes their last map for what is averaged: it is. Raises UsageError with the place."""
    for place, one in places(settings):
        taps = method.teacher_taps if isinstance(one, Candidate) else method.student_taps
        if catalog.is_custom(one.model) and {"pre_pool", "last_stage"}.intersection(taps):
            size = (one.image_size if isinstance(one, Candidate) else None) or image_size
            with own_at(loaded, place, one):
                custom.check_pooling(one.model, one.taps, size)
