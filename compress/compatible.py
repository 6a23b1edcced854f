"""Whether a recipe's method takes its networks, and what it would ship, asked before anything is trained."""

from __future__ import annotations

import torch

from compress import models
from compress.errors import UsageError
from compress.methods import build_method
from compress.models import catalog
from compress.models.count import macs, params
from compress.models.deployed import deployed
from compress.models.growth import larger
from compress.models.hollow import hollow
from compress.models.outline import Outline, outline
from compress.recipe import Loaded
from compress.schema import Candidate, Choice, Recipe


def check(loaded: Loaded, settings: Recipe, *, classes: int, image_size: int) -> list[str]:
    """Build the method for every possible pair on the meta device: no memory, no weights. Sentences on students that ship larger than they are.

    Raises UsageError with place and reason where a method does not take a pair.
    """
    if settings.distill.plain:
        return []
    teachers = [_outline(one, classes, image_size) for one in settings.teacher.candidates]
    labels = torch.arange(classes)
    notes = []
    for choice in settings.student.networks:
        student = _outline(choice, classes, image_size)
        for teacher in teachers:
            try:
                with hollow():
                    method = build_method(settings.distill, student=student, teacher=teacher, train_labels=labels, train_index=labels)
                    plain = models.build(choice.model, classes=classes, width=choice.width)
                    ships = deployed(models.build(choice.model, classes=classes, width=choice.width), choice.model, method.form())
            except UsageError as error:
                raise UsageError(f"{loaded.where('distill.method')}: {error} (student {student.name}, teacher {teacher.name})") from error
            if settings.train.batch_size < method.smallest_batch():
                why = f"{settings.distill.name} needs at least {method.smallest_batch()} pictures a batch, got {settings.train.batch_size}"
                raise UsageError(f"{loaded.where('train.batch_size')}: train.batch_size: {why} (a smaller last batch of an epoch is left out by itself)")
            sizes = [(params(one), macs(one, image_size)) for one in (plain, ships)] if method.form() is not None else []
            if sizes and (sentence := larger(choice.model, sizes[0], sizes[1])):
                notes.append(f"{settings.distill.name} with teacher {teacher.name}: {sentence}")
    return notes


def _outline(one: Choice | Candidate, classes: int, image_size: int) -> Outline:
    if isinstance(one, Candidate) and one.onnx is not None:
        return Outline(one.title, classes, {})
    size = (one.image_size if isinstance(one, Candidate) else None) or image_size
    catalog.require_size(catalog.info(one.model), size)
    return outline(one.model, classes=classes, width=one.width, image_size=size)
