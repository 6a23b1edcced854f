"""Images that are nearly the same in two parts of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compress.core.plural import plural
from compress.report.read import Arrays, Source
from compress.report.sections.images import SMALL, FileName, file_name, thumbnail


@dataclass(frozen=True)
class NearPair:
    """Two images with their names; `first` and `second` are data URIs, empty where none may be shown."""

    first: str
    second: str
    first_name: FileName
    second_name: FileName
    small: bool


@dataclass(frozen=True)
class NearDuplicatesView:
    """What was counted, what would separate it, some pairs, and why no image is shown."""

    counts: Sequence[str]
    group: str
    pairs: Sequence[NearPair]
    hidden: str = ""


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
    return NearDuplicatesView(counts, found.group or "", pairs(source.near_duplicates), source.hidden)


def pairs(arrays: Arrays) -> list[NearPair]:
    """Return the pairs of a file of examples, for the page."""
    if not arrays:
        return []
    names = [[file_name(str(name)) for name in arrays[key]] for key in ("first_name", "second_name")]
    if "first" not in arrays:
        return [NearPair("", "", one, other, False) for one, other in zip(*names, strict=True)]
    images = (arrays["first"], arrays["second"])
    return [
        NearPair(thumbnail(first), thumbnail(second), one, other, first.shape[0] < SMALL)
        for first, second, one, other in zip(*images, *names, strict=True)
    ]
