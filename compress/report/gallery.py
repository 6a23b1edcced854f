"""The images that a run folder shows, with the names of their files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


def with_names(gallery: Arrays, predictions: Arrays, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return the arrays of pictures.npz with `names` (M,) and `slice_names` (S,), the files of its images.

    Args:
        gallery: What `validate` chose to show.
        predictions: The arrays of predictions.npz.
        names: Of all test images, in their order.
    """
    found = {"names": gallery["index"]}
    if "slice_images" in gallery:
        found["slice_names"] = _positions_in_slices(gallery, predictions)
    every = np.array(names, dtype=np.str_)
    return {**gallery, **{key: every[positions] for key, positions in found.items()}}


def without_images(arrays: Arrays) -> dict[str, NDArray[Any]]:
    """Return the arrays of pictures.npz or near_duplicates.npz without any pixel."""
    return {key: value for key, value in arrays.items() if value.ndim < 4}


def _positions_in_slices(gallery: Arrays, predictions: Arrays) -> NDArray[np.int64]:
    """Return which test images the slices show, by content and class.

    Of several such images a slice shows the first ones: they have the same logits, and their order is kept.
    """
    places: dict[tuple[str, int], list[int]] = {}
    for position, key in enumerate(zip(predictions["sha256"].tolist(), predictions["labels"].tolist(), strict=True)):
        places.setdefault(key, []).append(position)
    seen: dict[tuple[str, tuple[str, int]], int] = {}
    chosen = []
    for image, label, group in zip(
        gallery["slice_images"], gallery["slice_labels"].tolist(), gallery["slice_name"].tolist(), strict=True
    ):
        key = (hashlib.sha256(image.tobytes()).hexdigest(), label)
        before = seen.get((group, key), 0)
        seen[group, key] = before + 1
        chosen.append(places[key][before])
    return np.array(chosen, dtype=np.int64)
