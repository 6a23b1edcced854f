"""The page of `compress data --html`: what was counted, and images as training and evaluation see them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from compress.commands.describe_data import PARTS, DataDescription
from compress.core.files import write_atomically
from compress.data import load_images, split_of
from compress.data.augment import views
from compress.data.augment.distort import distort_views
from compress.report.read import arrays_of
from compress.report.sections.images import SMALL, thumbnail
from compress.report.sections.near_duplicates import NearPair, pairs
from compress.report.templating import environment
from compress.report.views import Table, cells

MOST_CLASSES, VIEWS = 12, 5  # rows of sample images, and training views in each


@dataclass(frozen=True)
class SampleRow:
    """An image of a class: data URIs of its evaluation view and of training views."""

    name: str
    evaluated: str
    trained: tuple[str, ...]


def write(description: DataDescription, name: str, path: Path, *, images: bool) -> None:
    """Write the page.

    Args:
        description: Of the data.
        name: The recipe's.
        path: The file to write.
        images: Whether images may be shown, `report.images`.
    """
    head = cells("Class", *(part.capitalize() for part in PARTS))
    rows = [cells(*row) for row in description.rows[1:]]
    prepared = description.prepared
    text = (
        environment()
        .get_template("data.html")
        .render(
            title=f"Data of {name}",
            name=name,
            lines=description.lines,
            table=Table("Images by class and part", head, rows),
            rows=_samples(description) if images else (),
            augment=prepared.augment,
            small=prepared.image_size < SMALL,
            pairs=_pairs(description) if images else (),
            images=images,
        )
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())


def _samples(description: DataDescription) -> list[SampleRow]:
    """Return the first training image of each class, at most MOST_CLASSES, with its views in the first epochs."""
    training = description.training
    if training.streamed is not None:
        return []
    labels, train, _ = split_of(training)
    stored, size = load_images(training.images), training.image_size
    found = []
    for label, name in enumerate(training.classes[:MOST_CLASSES]):
        own = train[labels[train] == label]
        if len(own) == 0:
            continue
        image = torch.from_numpy(np.ascontiguousarray(stored[own[:1]]))
        index = torch.from_numpy(own[:1])
        seen = [
            views.views_of(index, epoch, 0, training.augment, None, size, distorted=training.distortion is not None)
            for epoch in range(1, VIEWS + 1)
        ]
        view, place = torch.cat(seen), torch.zeros(VIEWS, dtype=torch.int64)
        cut = views.apply_views(image, place, view, training.augment, size, scale=training.crop_scale)
        shown = distort_views(cut, view, training.distortion).numpy()
        evaluated = views.evaluation_view(image, size).numpy()[0]
        found.append(SampleRow(name, thumbnail(evaluated), tuple(thumbnail(one) for one in shown)))
    return found


def _pairs(description: DataDescription) -> list[NearPair]:
    found = description.near_duplicates
    return pairs(arrays_of(found.examples.path)) if found is not None and (found.test or found.validation) else []
