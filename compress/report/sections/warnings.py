"""The warnings of a run, and the image files that were skipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compress.core.plural import plural
from compress.report.read import Source
from compress.report.schema import UnreadableFile


@dataclass(frozen=True)
class WarningsView:
    """The warnings; `title` counts the unreadable files."""

    warnings: Sequence[str]
    title: str
    unreadable: Sequence[UnreadableFile]


def warnings(source: Source) -> WarningsView | None:
    """Build the section; None where there is nothing to warn of."""
    texts, unreadable = source.report.warnings, source.report.unreadable
    if not texts and not unreadable:
        return None
    number = len(unreadable)
    title = f"{plural(number, 'unreadable image was', 'unreadable images were')} skipped"
    return WarningsView(texts, title, unreadable)
