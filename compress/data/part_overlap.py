"""Near-duplicates across the training, validation and test parts of a prepared data set, with some of them to show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compress.core.plural import agree, plural
from compress.core.records.base import File
from compress.core.records.training import NearDuplicates, Prepared, TrainingData
from compress.core.records.warnings import RunWarning
from compress.data import groups, load_images, near_duplicates, perceptual_hash, training_arrays
from compress.data.near_duplicates import Pairs

SHOWN = 12  # pairs in the report
SHOWN_SIDE = 112  # pixels


def find_overlap(prepared: Prepared, training: TrainingData, work: Path) -> NearDuplicates:
    """Count near-duplicates across parts and write some pairs to `work`/near_duplicates.npz."""
    images, labels, _, validation = training_arrays(training)
    train = np.setdiff1d(np.arange(len(labels)), validation)  # unlabelled images are trained on, too
    assert isinstance(images, np.ndarray)  # streamed sets are not searched
    test = load_images(prepared.test_images)
    images = _centre(images, prepared.image_size)
    both = perceptual_hash.thumbnails(images)
    tested = perceptual_hash.thumbnails(test)
    with_train = near_duplicates.find(tested, both)
    within = near_duplicates.find(both.take(validation), both.take(train))
    held_out = Pairs(validation[within.queries], train[within.references], within.difference)
    names = [_names(prepared.train_names, "train", len(both)), _names(prepared.test_names, "test", len(tested))]
    group = None
    if prepared.train_names is not None and training.groups is None:
        pairs = [
            *(
                (names[1][one], names[0][other])
                for one, other in zip(with_train.queries, with_train.references, strict=True)
            ),
            *(
                (names[0][one], names[0][other])
                for one, other in zip(held_out.queries, held_out.references, strict=True)
            ),
        ]
        group = groups.suggest(pairs, [*names[0], *names[1]], prepared.classes) if pairs else None
    examples = work / "near_duplicates.npz"
    chosen, queried, shown_names = (with_train, test, names[1]) if len(with_train) else (held_out, images, names[0])
    _write(examples, chosen, queried, images, shown_names, names[0])
    return NearDuplicates(len(with_train), len(tested), len(held_out), len(validation), group, File.of(examples))


def overlap_warnings(found: NearDuplicates) -> list[RunWarning]:
    """Return the warning about near-duplicates across parts, if there are any."""
    if not found.test and not found.validation:
        return []
    counts = [
        f"{count:,} of {plural(total, f'{part} image')}"
        for part, count, total in (
            ("test", found.test, found.test_images),
            ("validation", found.validation, found.validation_images),
        )
        if count
    ]
    cure = f"keep them together by data.group: '{found.group}'" if found.group else "keep them together by data.group"
    if found.group is None and found.test < found.test_images // 10:
        cure = "remove them from one of the parts, or keep them together by data.group"
    return [
        RunWarning(
            f"data: {' and '.join(counts)} {agree(found.test + found.validation, 'has', 'have')} a near-duplicate "
            f"in another part, so accuracy may be too high; {cure}",
            affects_verdict=True,
        )
    ]


def _centre(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Return the part of stored training images that evaluation sees."""
    offset = (images.shape[1] - size) // 2
    return images[:, offset : offset + size, offset : offset + size]


def _names(file: File | None, part: str, count: int) -> list[str]:
    if file is None:
        return [f"{part} image {number}" for number in range(count)]
    return [str(name) for name in np.load(file.path, allow_pickle=False)]


def _write(
    path: Path,
    pairs: Pairs,
    queried: NDArray[np.uint8],
    images: NDArray[np.uint8],
    first_names: list[str],
    second_names: list[str],
) -> None:
    """Write pairs spread over those that were found, from the most to the least alike."""
    order = np.argsort(pairs.difference, kind="stable")
    chosen = (
        order[np.unique(np.linspace(0, len(order) - 1, min(SHOWN, len(order))).astype(int))] if len(order) else order
    )
    first, second = pairs.queries[chosen], pairs.references[chosen]
    step = max(1, queried.shape[1] // SHOWN_SIDE)
    np.savez_compressed(
        path,
        first=np.asarray(queried[first])[:, ::step, ::step],
        second=np.asarray(images[second])[:, ::step, ::step],
        first_name=np.array([first_names[one] for one in first], dtype=np.str_),
        second_name=np.array([second_names[one] for one in second], dtype=np.str_),
    )
