"""What is probably wrong with a set of pictures, as sentences: they go with the data stage's result into every run's report."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from compress.core.text import agree, plural


def train_test_overlap(count: int, what: str, then: str) -> str:
    """`count` training pictures have the same `what` (bytes, pixels) as a test picture; `then`: what is done about it."""
    return (
        f"{plural(count, 'training picture')} {agree(count, 'is', 'are')} also in the test part (same {what}); {then}"
    )


def duplicates_across_classes(pictures: Iterable[tuple[str, int, object]], what: str) -> list[str]:
    """A sentence on pictures that lie in two classes: `pictures` are (name, class number, content or its hash), `what` is compared (bytes, pixels)."""
    first: dict[object, tuple[str, int]] = {}
    pairs: dict[object, str] = {}
    for name, label, content in pictures:
        other, known = first.setdefault(content, (name, label))
        if known != label:
            pairs.setdefault(content, f"{other} and {name}")
    if not pairs:
        return []
    shown = next(iter(pairs.values()))
    return [
        f"{plural(len(pairs), 'picture')} {agree(len(pairs), 'lies', 'lie')} in two classes with the same {what} (first: {shown})"
    ]


def classes_without_images(classes: tuple[str, ...], train: np.ndarray, test: np.ndarray) -> list[str]:
    """Sentences on classes without pictures in a part; labels int64 (N,) of both. Validation has pictures of each class that training has."""
    said = []
    for parts, labels in (("training or validation", train), ("test", test)):
        counts = np.bincount(labels, minlength=len(classes))
        gone = [repr(name) for name, count in zip(classes, counts, strict=True) if not count]
        if len(gone) == 1:
            said.append(f"class {gone[0]} has no {parts} pictures")
        elif gone:
            said.append(
                f"{len(gone)} classes have no {parts} pictures: {', '.join(gone[:3])}{', ...' if gone[3:] else ''}"
            )
    return said
