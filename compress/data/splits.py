"""Stratified, seeded splits that are the same on every NumPy version.

Images are ordered by sorting the raw 64-bit output of PCG64(seed). NumPy promises that the raw stream of a bit
generator never changes; it does not promise that for `Generator.permutation`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from compress.core.errors import UsageError

# Calibration draws other numbers than the validation split of the same seed.
CALIBRATION_STREAM = 1
# And another choice of the images that keep their label.
LABELLED_STREAM = 4
# And the parts of a cross-validation.
FOLD_STREAM = 5


def shuffled(count: int, seed: int, stream: int = 0) -> np.ndarray:
    """Return a permutation of range(count), int64 (count,); each `stream` of a seed gives its own permutation."""
    keys = np.random.PCG64(np.random.SeedSequence([seed, stream])).random_raw(count)
    return np.argsort(keys, kind="stable").astype(np.int64)


def allocate(sizes: np.ndarray, total: int, least: int = 0, leave: int = 0) -> np.ndarray:
    """Distribute `total` over groups in proportion to their sizes, by largest remainder.

    Ties go to the lower group. The caller makes sure that `least` and `leave` can be met.

    Args:
        sizes: Sizes of the groups, integers (G,).
        total: Number to distribute.
        least: What every group gets at least.
        leave: What every group keeps at least.

    Returns:
        What each group gives, int64 (G,).
    """
    sizes = np.asarray(sizes, dtype=np.int64)
    quota = sizes * (total / max(int(sizes.sum()), 1))
    floor, ceiling = np.minimum(least, sizes), np.maximum(sizes - leave, 0)
    # 1e-9: an exact quota must not fall to the integer below.
    given = np.clip(np.floor(quota + 1e-9).astype(np.int64), floor, ceiling)
    while (missing := total - int(given.sum())) != 0:
        step = 1 if missing > 0 else -1
        open_groups = given < ceiling if step > 0 else given > floor
        if not open_groups.any():
            break
        order = np.argsort(np.where(open_groups, step * (given - quota), np.inf), kind="stable")
        given[order[: min(abs(missing), int(open_groups.sum()))]] += step
    return given


def _draw(labels: np.ndarray, per_class: np.ndarray, classes: np.ndarray, seed: int, stream: int) -> np.ndarray:
    """Draw `per_class` positions of each class: sorted int64."""
    order = shuffled(len(labels), seed, stream)
    ordered = labels[order]
    picked = [order[ordered == label][:count] for label, count in zip(classes, per_class, strict=True)]
    return np.sort(np.concatenate([np.empty(0, np.int64), *picked]))


def stratified(labels: np.ndarray, count: int, seed: int, stream: int = 0) -> np.ndarray:
    """Draw `count` positions with the classes in proportion.

    Args:
        labels: Class numbers (N,).
        count: How many positions to draw; all of them if there are fewer.
        seed: The draw follows from the seed.
        stream: Each stream of a seed is a draw of its own.

    Returns:
        Sorted int64 (min(count, N),).
    """
    labels = np.asarray(labels)
    if count >= len(labels):
        return np.arange(len(labels), dtype=np.int64)
    classes, sizes = np.unique(labels, return_counts=True)
    return _draw(labels, allocate(sizes, count), classes, seed, stream)


def carve(
    labels: np.ndarray,
    validation: float,
    seed: int,
    names: Sequence[str] = (),
    groups: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Carve a validation part off the training images, with every class in both parts.

    Args:
        labels: Class numbers of the training images (N,).
        validation: A share below 1, or a number of images. A share is met to the image, unless a class would then be
            in one part only.
        seed: The split follows from the seed.
        names: Class names for error messages, if they are known.
        groups: Group of each image, str (N,): a group stays on one side, so a share is met approximately.

    Returns:
        Positions to train on and positions to validate on: sorted int64, disjoint.

    Raises:
        UsageError: A class has a single image, or `validation` leaves a class without images in one of the parts.
    """
    labels = np.asarray(labels)
    classes, sizes = np.unique(labels, return_counts=True)
    if len(classes) == 0:
        raise UsageError(
            "data: there are no training images to carve a validation part from; add images or raise data.limit_train"
        )
    if sizes.min() < 2:
        alone = int(classes[sizes.argmin()])
        raise UsageError(
            f"data: class {repr(names[alone]) if names else alone} has a single training image, but one is needed for "
            "training and one for validation; add images of it, or raise data.limit_train"
        )
    count = max(round(len(labels) * validation), len(classes)) if validation < 1 else int(validation)
    if count < len(classes) or count > len(labels) - len(classes):
        raise UsageError(
            f"data.validation: {validation} of {len(labels)} training images cannot hold every one of {len(classes)} "
            f"classes in both parts; choose between {len(classes)} and {len(labels) - len(classes)} images"
        )
    quota = allocate(sizes, count, least=1, leave=1)
    if groups is None:
        held_out = _draw(labels, quota, classes, seed, 0)
    else:
        held_out = _draw_groups(labels, quota, classes, groups, seed, names)
    return np.setdiff1d(np.arange(len(labels), dtype=np.int64), held_out, assume_unique=True), held_out


def _draw_groups(
    labels: np.ndarray,
    quota: np.ndarray,
    classes: np.ndarray,
    groups: np.ndarray,
    seed: int,
    names: Sequence[str],
) -> np.ndarray:
    """Draw whole groups whose images of each class come near `quota`: sorted int64.

    Groups are taken in the order of a hash of their names while they bring the classes nearer to their quota, and never
    the last images of a class. Raises UsageError where all images of a class are in one group.
    """
    found, member = np.unique(groups, return_inverse=True)
    counts = np.zeros((len(found), len(classes)), np.int64)
    np.add.at(counts, (member, np.searchsorted(classes, labels)), 1)
    alone = np.flatnonzero((counts > 0).sum(axis=0) < 2)
    if len(alone):
        label = classes[alone[0]]
        raise UsageError(
            f"data.group: all training images of class {repr(names[label]) if names else label} are in one group, but "
            "one group is needed for training and one for validation; name smaller groups, or add images of it"
        )
    order = sorted(
        range(len(found)), key=lambda one: hashlib.sha256(f"{seed} validation {found[one]}".encode()).digest()
    )
    left, missing, chosen = counts.sum(axis=0), quota.astype(np.int64), list[int]()
    for least in (True, False):  # first a group of every class, then what brings the classes nearer to their quota
        for one in order:
            own = counts[one]
            if one in chosen or ((own > 0) & (left == own)).any():
                continue
            wanted = ((own > 0) & (missing == quota)).any() if least else True
            nearer = np.abs(missing - own).sum() < np.abs(missing).sum()
            if wanted and (nearer or least):
                chosen.append(one)
                missing, left = missing - own, left - own
    return np.flatnonzero(np.isin(member, chosen)).astype(np.int64)


def fold(
    labels: np.ndarray, number: int, of: int, seed: int, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return one of several disjoint parts as validation part, and what is left to train on.

    Args:
        labels: Class numbers (N,).
        number: Of the part, from 0.
        of: How many parts there are; together they hold every image once, the classes in proportion.
        seed: The parts follow from the seed.
        groups: Group of each image, str (N,): a group is in one part.

    Returns:
        Positions to train on and positions to validate on: sorted int64, disjoint.
    """
    if groups is None:
        order = shuffled(len(labels), seed, FOLD_STREAM)
        # Dealt class after class, so that every part gets as many images of a class, and of all, as any other.
        dealt = order[np.argsort(labels[order], kind="stable")]
        held_out = np.sort(dealt[number::of])
    else:
        found, member = np.unique(groups, return_inverse=True)
        classes, numbered = np.unique(labels, return_inverse=True)
        counts = np.zeros((len(found), len(classes)))
        np.add.at(counts, (member, numbered), 1)
        share = counts / counts.sum(axis=0)
        parts, place = np.zeros((of, len(classes))), np.zeros(len(found), np.int64)
        tie = shuffled(len(found), seed, FOLD_STREAM)
        for one in tie[np.argsort(-share[tie].max(axis=1), kind="stable")]:  # the largest groups first
            place[one] = int(np.argmin(parts @ share[one] + 1e-6 * parts.sum(axis=1)))
            parts[place[one]] += share[one]
        held_out = np.flatnonzero(place[member] == number).astype(np.int64)
    return np.setdiff1d(np.arange(len(labels), dtype=np.int64), held_out, assume_unique=True), held_out


def split_labelled(
    labels: np.ndarray,
    validation: float,
    seed: int,
    labelled: int | None,
    names: Sequence[str] = (),
    groups: np.ndarray | None = None,
    part: tuple[int, int] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split the training images by what their labels are used for.

    Args:
        labels: Class numbers (N,), -1 for an unlabelled image.
        validation: See `carve`; taken from the labelled images.
        seed: The split follows from the seed.
        labelled: How many images to train on keep their label, drawn by class; None: all that have one. The
            validation part does not depend on it.
        names: Class names for error messages, if they are known.
        groups: Group of each image, str (N,), see `carve`.
        part: Number and count of the parts of which one is the validation part, see `fold`; None: as `carve` does.

    Returns:
        labels: As given, but -1 for the images that lost theirs.
        train_index: Labelled images to train on, sorted int64.
        validation_index: Sorted int64.

    Raises:
        UsageError: See `carve`; or `labelled` leaves a class without a label.
    """
    known = np.flatnonzero(labels >= 0)
    members = None if groups is None else groups[known]
    if part is None:
        halves = carve(labels[known], validation, seed, names, members)
    else:
        halves = fold(labels[known], *part, seed, members)
    train_index, validation_index = known[halves[0]], known[halves[1]]
    if labelled is None:
        return labels, train_index, validation_index
    kept = train_index[stratified(labels[train_index], labelled, seed, LABELLED_STREAM)]
    missing = np.setdiff1d(labels[train_index], labels[kept])
    if len(missing):
        name = repr(names[missing[0]]) if names else missing[0]
        raise UsageError(f"data.labelled: with {labelled} labels, class {name} has none; choose more")
    hidden = labels.copy()
    hidden[np.setdiff1d(train_index, kept)] = -1
    return hidden, kept, validation_index


def calibration_index(labels: np.ndarray, train_index: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draw the positions of the images that set the int8 ranges, never from the validation part.

    Args:
        labels: Class numbers of all training images (N,).
        train_index: Positions that may be drawn, int64 (M,).
        count: How many to draw; all of `train_index` if there are fewer.
        seed: The draw follows from the seed.

    Returns:
        Positions, stratified: sorted int64.
    """
    train_index = np.asarray(train_index, dtype=np.int64)
    chosen: np.ndarray = train_index[stratified(np.asarray(labels)[train_index], count, seed, CALIBRATION_STREAM)]
    return chosen
