"""Splits by purpose: stratified, seeded, and the same on every numpy version. Pure numpy.

The order of pictures comes from sorting the raw 64-bit output of PCG64(seed): numpy promises that a bit generator's raw stream never
changes, and does not promise that of `Generator.permutation`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compress.core.errors import UsageError

CALIBRATION_STREAM = 1  # calibration draws other numbers than the validation split of the same seed


def shuffled(count: int, seed: int, stream: int = 0) -> np.ndarray:
    """A permutation of range(count) as int64 (count,); another `stream` of the same seed is another permutation."""
    keys = np.random.PCG64(np.random.SeedSequence([seed, stream])).random_raw(count)
    return np.argsort(keys, kind="stable").astype(np.int64)


def allocate(sizes: np.ndarray, total: int, least: int = 0, leave: int = 0) -> np.ndarray:
    """Share `total` out over groups in proportion to their sizes (G,) -> int64 (G,), by largest remainder.

    Every group gets at least `least` and keeps at least `leave`; the caller makes sure that this is possible. Ties go to the lower group.
    """
    sizes = np.asarray(sizes, dtype=np.int64)
    quota = sizes * (total / max(int(sizes.sum()), 1))
    floor, ceiling = np.minimum(least, sizes), np.maximum(sizes - leave, 0)
    given = np.clip(
        np.floor(quota + 1e-9).astype(np.int64), floor, ceiling
    )  # 1e-9: an exact quota must not fall to the integer below
    while (missing := total - int(given.sum())) != 0:
        step = 1 if missing > 0 else -1
        open_groups = given < ceiling if step > 0 else given > floor
        if not open_groups.any():
            break
        order = np.argsort(np.where(open_groups, step * (given - quota), np.inf), kind="stable")
        given[order[: min(abs(missing), int(open_groups.sum()))]] += step
    return given


def _drawn(labels: np.ndarray, per_class: np.ndarray, classes: np.ndarray, seed: int, stream: int) -> np.ndarray:
    """Positions (sorted int64) with `per_class` seeded picks of each class."""
    order = shuffled(len(labels), seed, stream)
    ordered = labels[order]
    picked = [order[ordered == label][:count] for label, count in zip(classes, per_class, strict=True)]
    return np.sort(np.concatenate([np.empty(0, np.int64), *picked]))


def stratified(labels: np.ndarray, count: int, seed: int, stream: int = 0) -> np.ndarray:
    """A seeded subset of `count` positions, classes in proportion: sorted int64 (min(count, N),)."""
    labels = np.asarray(labels)
    if count >= len(labels):
        return np.arange(len(labels), dtype=np.int64)
    classes, sizes = np.unique(labels, return_counts=True)
    return _drawn(labels, allocate(sizes, count), classes, seed, stream)


def carve(labels: np.ndarray, validation: float, seed: int, names: Sequence[str] = ()) -> tuple[np.ndarray, np.ndarray]:
    """Split training positions into (train, validation): sorted int64, disjoint, every class in both.

    `validation` is a share below 1 or a number of pictures. The share is met to the picture, unless a class would then be in one part only.
    `names`: of the classes, where they are known, for what is refused.

    Raises UsageError where a class has one picture only, or `validation` leaves a class without pictures in either part.
    """
    labels = np.asarray(labels)
    classes, sizes = np.unique(labels, return_counts=True)
    if len(classes) == 0:
        raise UsageError(
            "data: there are no training pictures to carve a validation part from; add pictures or raise data.limit_train"
        )
    if sizes.min() < 2:
        alone = int(classes[sizes.argmin()])
        raise UsageError(
            f"data: class {repr(names[alone]) if names else alone} has a single training picture, but one is needed for training and one "
            f"for validation; "
            "add pictures of it, or raise data.limit_train"
        )
    count = max(round(len(labels) * validation), len(classes)) if validation < 1 else int(validation)
    if count < len(classes) or count > len(labels) - len(classes):
        raise UsageError(
            f"data.validation: {validation} of {len(labels)} training pictures cannot hold every one of {len(classes)} classes "
            f"in both parts; "
            f"choose between {len(classes)} and {len(labels) - len(classes)} pictures"
        )
    held_out = _drawn(labels, allocate(sizes, count, least=1, leave=1), classes, seed, 0)
    return np.setdiff1d(np.arange(len(labels), dtype=np.int64), held_out, assume_unique=True), held_out


def calibration_index(labels: np.ndarray, train_index: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Positions for the int8 ranges: `count` of `train_index` (all, where there are fewer), stratified: sorted int64. Never validation."""
    train_index = np.asarray(train_index, dtype=np.int64)
    return train_index[stratified(np.asarray(labels)[train_index], count, seed, CALIBRATION_STREAM)]
