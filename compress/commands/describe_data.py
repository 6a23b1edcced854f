"""`compress data`: counts by class and part, what was left out, near-duplicates, and what the test part can certify."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compress.core.console import Console
from compress.core.plural import plural
from compress.core.records.training import NearDuplicates, Prepared, TrainingData
from compress.core.store import Store
from compress.data import load_groups, load_labels, split_of
from compress.data.part_overlap import overlap_warnings
from compress.pipeline.prepared_data import absolute, near_duplicates, prepare
from compress.recipe.defaults import resolve
from compress.recipe.loader import Loaded
from compress.verdict.clusters import FEWEST_GROUPS
from compress.verdict.sample_size import certifiable_margin

FLIPS = (0.05, 0.1, 0.2)  # shares of answers that change
MOST_SIZES = 5  # image sizes in a line
PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class DataDescription:
    """What was found: a table of images by class and part, its header first, and sentences; the records behind them."""

    rows: list[tuple[str, ...]]
    lines: list[str]
    prepared: Prepared
    training: TrainingData
    near_duplicates: NearDuplicates | None


def describe_data(loaded: Loaded, artifacts: Path, console: Console) -> DataDescription:
    """Read the data of a recipe as a run would, and describe it.

    Args:
        loaded: The recipe.
        artifacts: Where the decoded data is kept; a run finds it there.
        console: Where progress is printed.
    """
    settings = resolve(loaded.recipe)
    base = loaded.path.resolve().parent
    store = Store(artifacts, "cpu", console)
    prepared, training = prepare(settings.data, base, store)
    labels, train, validation = split_of(training)
    test_labels = load_labels(prepared.test_labels)
    counts = [
        np.bincount(part, minlength=len(prepared.classes)) for part in (labels[train], labels[validation], test_labels)
    ]
    rows: list[tuple[str, ...]] = [("class", *PARTS)]
    rows += [(name, *(f"{int(part[number]):,}" for part in counts)) for number, name in enumerate(prepared.classes)]
    if unlabelled := int((labels < 0).sum()):
        rows.append(("(no label)", f"{unlabelled:,}", "0", "0"))
    totals = [int(part.sum()) for part in counts]
    rows.append(("all", f"{totals[0] + unlabelled:,}", *(f"{total:,}" for total in totals[1:])))
    found = near_duplicates(prepared, training, store)
    lines = [*_originals(prepared, absolute(base, settings.data.root)), *_group_lines(prepared, training)]
    lines += [f"data: {warning}" for warning in prepared.run_warnings]
    if found is not None:
        lines += [str(warning) for warning in overlap_warnings(found)] or ["no near-duplicates across the parts"]
    lines += certified(len(test_labels), prepared)
    return DataDescription(rows, lines, prepared, training, found)


def certified(images: int, prepared: Prepared) -> list[str]:
    """Return how small a drop the test part can certify, for a student without a drop."""
    if prepared.test_groups is not None:
        count = len(np.unique(load_groups(prepared.test_groups)))
        if count < FEWEST_GROUPS:
            too_few = f"{plural(count, 'group')} in the test part decide about no accuracy"
            return [f"{too_few}: at least {FEWEST_GROUPS} are needed"]
        return [
            f"{plural(count, 'group')} in the test part: which drop they can certify depends on how alike the images "
            "of a group are"
        ]
    margins = [
        f"{certifiable_margin(images, share * images):.1f} points where {share:.0%} of the answers change"
        for share in FLIPS
    ]
    return [f"{plural(images, 'test image')} can certify a drop of {', '.join(margins)}"]


def _originals(prepared: Prepared, root: Path | None) -> list[str]:
    """Return sizes and modes of the image files, and how many are smaller than the network's input."""
    if prepared.train_names is None or prepared.test_names is None or root is None:
        return [f"images: {prepared.image_size}x{prepared.image_size}, from {prepared.source}"]
    from compress.data.decode import DECODE_ERRORS, quiet_pillow  # needs Pillow
    from export.runtime.images import open_image

    sizes, modes, small = Counter[str](), Counter[str](), 0
    names = [str(name) for file in (prepared.train_names, prepared.test_names) for name in np.load(file.path)]
    with quiet_pillow():
        for name in names:
            try:
                with open_image(root / name) as image:
                    sizes[f"{image.width}x{image.height}"] += 1
                    modes[f"{image.format} {image.mode}"] += 1
                    small += min(image.size) < prepared.image_size
            except DECODE_ERRORS:  # the data came from the cache, and the file has gone
                sizes["no longer there"] += 1
    lines = [f"sizes: {_common(sizes)}", f"formats: {_common(modes)}"]
    if small:
        lines.append(
            f"{small:,} of {plural(len(names), 'image')} are smaller than data.image_size {prepared.image_size} and "
            "are enlarged; a smaller data.image_size trains faster and loses little"
        )
    return lines


def _common(counts: Counter[str]) -> str:
    shown = ", ".join(f"{count:,} {name}" for name, count in counts.most_common(MOST_SIZES))
    rest = len(counts) - MOST_SIZES
    return shown + (f", and {plural(rest, 'other')}" if rest > 0 else "")


def _group_lines(prepared: Prepared, training: TrainingData) -> list[str]:
    if training.groups is None or prepared.test_groups is None:
        return []
    names = load_groups(training.groups), load_groups(prepared.test_groups)
    counts = [len(np.unique(one)) for one in names]
    return [f"groups: {counts[0]:,} in the training and validation part, {counts[1]:,} in the test part"]
