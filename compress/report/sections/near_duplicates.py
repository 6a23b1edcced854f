"""Images that are nearly the same in two parts of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compress.core.plural import plural
from compress.report.read import Source
from compress.report.sections.images import SMALL, FileName, file_name, thumbnail


@dataclass(frozen=True)
class NearPair:
    """Two images with their names; `first` and `second` are data URIs."""

    first: str
    second: str
    first_name: FileName
    second_name: FileName
    small: bool


@dataclass(frozen=True)
class NearDuplicatesView:
    """What was counted, what would separate it, and some pairs."""

    counts: Sequence[str]
    group: str
    pairs: Sequence[NearPair]


def near_duplicates(source: Source) -> NearDuplicatesView | None:
    """Build the section; None where no near-duplicates were found."""
    found = source.report.near_duplicates
    if found is None or not (found.test or found.validation):
        return None
    counts = [
        f"{count:,} of {plural(total or 0, f'{part} image')}"
        for part, count, total in (
            ("test", found.test, found.test_images),
            ("validation", found.validation, found.validation_images),
        )
        if count
    ]
    arrays = source.near_duplicates
    rows = (
        zip(*(arrays[key] for key in ("first", "second", "first_name", "second_name")), strict=True) if arrays else ()
    )
    pairs = [
        NearPair(
            thumbnail(first), thumbnail(second), file_name(str(one)), file_name(str(other)), first.shape[0] < SMALL
        )
        for first, second, one, other in rows
    ]
    return NearDuplicatesView(counts, found.group or "", pairs)
