"""What a source of data leaves on disk, whichever source it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compress.core.records.base import File
from compress.core.records.training import Unreadable
from compress.core.records.warnings import RunWarning, texts


@dataclass(frozen=True)
class PreparedFiles:
    """Files and classes as in `Prepared`. `paths`: where the training images stay in their files."""

    classes: tuple[str, ...]
    train_images: File
    train_labels: File
    test_images: File
    test_labels: File
    unreadable: tuple[Unreadable, ...] = ()
    paths: File | None = None
    warnings: tuple[RunWarning, ...] = ()

    def record(self) -> dict[str, Any]:
        """Return the fields as `Prepared` keeps them, with its two lists of sentences."""
        kept = {
            "warnings": texts(self.warnings, affects_verdict=False),
            "cautions": texts(self.warnings, affects_verdict=True),
        }
        return {**vars(self), **kept}
