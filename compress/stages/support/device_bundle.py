"""The bundle for the device: the files to verify, with a sample of the test images."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import export.bundle.write
from compress.core.plural import plural
from compress.core.records.base import File
from compress.core.records.deployment import ModelFile
from compress.core.store import Context
from compress.data import stratified
from compress.stages.support.ship_choice import preferred_student
from export.bundle import synthetic as synthetic_images
from export.bundle.write import Shipped
from export.runtime import Model, copy_model, cores, isa, saturates

OWN_BYTES = 20_000_000  # of the user's photos in the bundle


def write_bundle(
    context: Context,
    models: tuple[ModelFile, ...],
    images: NDArray[np.uint8],
    labels: NDArray[np.integer[Any]],
    *,
    samples: int,
    seed: int,
    resize: int | None,
    own: tuple[File, ...],
    synthetic: bool = False,
) -> File:
    """Write the teacher's and the student's files with a stratified sample of test images; return the archive.

    Args:
        context: Of the stage that writes it.
        models: The files that may go into the bundle; those measured for comparison alone are left out.
        images: Test images, (N, S, S, 3).
        labels: Their labels, (N,).
        samples: Number of test images in the bundle.
        seed: Of their choice.
        resize: The short side to which photos are resized before their centre is cut out; None: the images' side.
        own: The user's photos, which go along as they are.
        synthetic: Draw the images instead, so that none of the user's is in it.
    """
    photos = [file.path for file in within_bytes(own)]
    with tempfile.TemporaryDirectory() as temporary:
        shipped: list[Shipped] = []
        for model in models:
            if not model.comparison_only:
                named = Path(temporary) / model.name
                copy_model(model.file.path, named)
                shipped.append(Shipped(named, model.role, model.precision, model.target))
        if photos:
            context.console.line(
                f"bundle: {len(photos)} of your photos go along as they are, metadata included "
                "(device.photos: 0 leaves them out)"
            )
        if synthetic:
            pixels, right = _synthetic_images(context, shipped, samples, images.shape[1], seed), None
        else:
            chosen = stratified(labels, min(samples, len(labels)), seed)
            pixels, right = images[chosen], labels[chosen]
        written = export.bundle.write.write(
            context.work / "bundle",
            shipped,
            pixels,
            right,
            title=preferred_student(models).name,
            resize=resize or images.shape[1],
            own_photos=photos,
        )
    return File.of(written.archive)


def _synthetic_images(context: Context, models: list[Shipped], count: int, size: int, seed: int) -> NDArray[np.uint8]:
    """Draw images on which the student's answers are clear, and say what they are worth."""
    students = [model for model in models if model.role == "student"]
    students.sort(key=lambda model: model.precision != "int8")
    images = synthetic_images.draw(synthetic_images.candidates(count), size, seed)
    loaded = [Model.load(model.path, threads=cores(), as_written=saturates(model.target, isa())) for model in students]
    logits = [model.run(images) for model in loaded]
    chosen = synthetic_images.choose(logits, count)
    named = len(np.unique(logits[0][chosen].argmax(axis=1)))
    context.console.line(
        f"bundle: {count} synthetic images and none of yours; {students[0].path.name} answers with {named} of "
        f"{plural(logits[0].shape[1], 'class', 'classes')}; accuracy is not measured on the device"
    )
    if named < 2:
        context.console.warn(
            f"bundle: {students[0].path.name} gives all synthetic images the same class, so equal classes prove little "
            "on a device; its float files are compared by their logits"
        )
    return images[chosen]


def within_bytes(files: tuple[File, ...], most: int = OWN_BYTES) -> list[File]:
    """Return the files, in order, that fit into `most` bytes together."""
    kept: list[File] = []
    for file in files:
        if file.bytes + sum(one.bytes for one in kept) <= most:
            kept.append(file)
    return kept
