"""A small streamed data set: its image size, its normalization, and the listing of its training part."""

from __future__ import annotations

from compress.core.records.training import Normalization, TrainingData
from compress.data.streaming.listing import ListingSpec

SIDE = 16
NORMALIZATION = Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def listing_spec(training: TrainingData) -> ListingSpec:
    """Return where the training images of a streamed set are listed."""
    assert training.streamed is not None
    return ListingSpec(training.streamed.root, training.images.path, training.streamed.paths.path, SIDE)
