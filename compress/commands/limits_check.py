"""Limits of a recipe that its test images cannot settle, and photos that are smaller than the network's input."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from compress.core.plural import plural
from compress.data.sources import fashion, folder, folder_split, inspection, npz
from compress.data.splits import allocate, shuffled
from compress.recipe.loader import Loaded
from compress.recipe.schema import Data
from compress.verdict.intervals import wilson
from compress.verdict.sample_size import certifiable_margin, images_needed_top1

# Share of the answers that int8 and a student of another kind usually change.
USUAL_FLIPS = 0.1
PHOTOS = 200  # image files whose size is looked at


def test_counts(config: Data, base: Path) -> np.ndarray | None:
    """Return the number of test images of each class; None where only decoding shows it.

    Of a folder without a test part it is what the share amounts to; which images it gets follows from their content.
    """
    if config.source == "fashion":
        counts = np.bincount(fashion.load()["test_labels"])
    elif config.source == "npz":
        labels, names = npz.read_labels(inspection.locate_root(config, base))
        counts = np.bincount(labels["test_labels"], minlength=len(names))
    elif config.source == "folder":
        layout = folder.scan(inspection.locate_root(config, base), config.labels)
        every = np.bincount([one.label for one in layout.train], minlength=len(layout.classes))
        if layout.test is not None:
            counts = np.bincount([one.label for one in layout.test], minlength=len(layout.classes))
        else:
            left = folder_split.training_labels(layout, config.test)
            counts = every - np.bincount(left, minlength=len(layout.classes))
    else:
        return None
    limit = config.limit_test
    return counts if limit is None or limit >= counts.sum() else allocate(counts, limit)


def unsettled(loaded: Loaded, counts: np.ndarray, names: tuple[str, ...]) -> Iterator[str]:
    """Find limits on accuracy that so few test images cannot settle, or only a student without a fault.

    Args:
        loaded: The recipe.
        counts: Test images of each class.
        names: Of the classes.
    """
    require, images = loaded.recipe.require, int(counts.sum())
    if images == 0 or loaded.recipe.data.group is not None:
        return  # images of a group say less, how much less is known afterwards
    if require.max_top1_drop is not None:
        share = _largest_flips(images, require.max_top1_drop / 100)
        where, limit = loaded.where("require.max_top1_drop"), f"{require.max_top1_drop:g} points"
        said = f"{where}: require.max_top1_drop: {limit}: with {plural(images, 'test image')}"
        if share is None:
            yield f"{said} even a student that answers like the teacher is undecided; add test images"
        elif share < USUAL_FLIPS:
            cannot = (
                f"a student without any drop passes only if it changes less than {100 * share:.1f} % of the answers"
            )
            yield f"{said}, {cannot}; {100 * USUAL_FLIPS:.0f} % is usual"
    if require.min_top1 is not None and (low := wilson(images, images)[0]) < require.min_top1:
        where, count_text = loaded.where("require.min_top1"), plural(images, "test image")
        yield (
            f"{where}: require.min_top1: {require.min_top1:g}: {count_text} that are all right certify "
            f"{100 * low:.1f} %; {_needed(images, require.min_top1)}"
        )
    for name, limit_of in _recalls(loaded, names):
        count = int(counts[names.index(name)])
        low = wilson(count, count)[0] if count else 0.0
        if low < limit_of:
            yield (
                f"{loaded.where('require.min_recall')}: require.min_recall: {limit_of:g}: class {name!r} has "
                f"{plural(count, 'test image')}, and all of them right certify {100 * low:.1f} %; "
                f"{_needed(count, limit_of)}"
            )
            break  # one class shows what to do


def _recalls(loaded: Loaded, names: tuple[str, ...]) -> list[tuple[str, float]]:
    limit = loaded.recipe.require.min_recall
    if limit is None:
        return []
    if isinstance(limit, dict):
        return [(name, value) for name, value in limit.items() if name in names]
    return [(name, limit) for name in names]


def _largest_flips(images: int, limit: float) -> float | None:
    """Return the largest share of changed answers at which a drop of 0 passes the limit; None: not even without any."""
    if certifiable_margin(images, 0.0) > 100 * limit:
        return None
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if certifiable_margin(images, middle * images) <= 100 * limit else (low, middle)
    return low


def _needed(images: int, limit: float) -> str:
    """Say how many images, all right, put Wilson's interval above a limit that so few do not reach."""
    needed = images_needed_top1(max(images, 1), max(images, 1), limit)
    return f"no number of images certifies {100 * limit:g} %" if needed is None else f"it takes at least {needed:,}"


def upscaled(config: Data, base: Path) -> str | None:
    """Return a note where photos are smaller than the network's input, by the sizes of at most PHOTOS files."""
    if config.source != "folder":
        return None
    from compress.data.decode import DECODE_ERRORS, quiet_pillow  # needs Pillow
    from export.runtime.images import open_image

    root = inspection.locate_root(config, base)
    files = folder.scan(root, config.labels).train
    chosen = [files[i] for i in sorted(shuffled(len(files), config.split_seed)[:PHOTOS])]
    sides = []
    with quiet_pillow():
        for one in chosen:
            try:
                with open_image(root / one.path) as image:
                    sides.append(min(image.size))
            except DECODE_ERRORS:  # decoding reports it
                continue
    small = sum(side < config.side for side in sides)
    if not sides or 2 * small < len(sides):
        return None
    usual = int(np.median(sides))
    return (
        f"{small} of {len(sides)} photos looked at are smaller than image_size {config.side} (median short side "
        f"{usual}) and are enlarged; a smaller data.image_size trains faster and loses little"
    )
