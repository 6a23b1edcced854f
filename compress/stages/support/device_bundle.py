"""The bundle for the device: the files to verify, with a sample of the test images."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import export.bundle.write
from compress.core.records.base import File
from compress.core.records.deployment import ModelFile
from compress.core.store import Context
from compress.data import stratified
from compress.stages.support.ship_choice import preferred_student
from export.runtime import copy_model

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
    """
    photos = [file.path for file in within_bytes(own)]
    with tempfile.TemporaryDirectory() as temporary:
        shipped = []
        for model in models:
            if not model.comparison_only:
                named = Path(temporary) / model.name
                copy_model(model.file.path, named)
                shipped.append(export.bundle.write.Shipped(named, model.role, model.precision, model.target))
        if photos:
            context.console.line(
                f"bundle: {len(photos)} of your photos go along as they are, metadata included "
                "(device.photos: 0 leaves them out)"
            )
        chosen = stratified(labels, min(samples, len(labels)), seed)
        written = export.bundle.write.write(
            context.work / "bundle",
            shipped,
            images[chosen],
            labels[chosen],
            title=preferred_student(models).name,
            resize=resize or images.shape[1],
            own_photos=photos,
        )
    return File.of(written.archive)


def within_bytes(files: tuple[File, ...], most: int = OWN_BYTES) -> list[File]:
    """Return the files, in order, that fit into `most` bytes together."""
    kept: list[File] = []
    for file in files:
        if file.bytes + sum(one.bytes for one in kept) <= most:
            kept.append(file)
    return kept
