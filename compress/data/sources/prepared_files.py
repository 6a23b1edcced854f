"""What every data source leaves in its work folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compress.core.records.base import File
from compress.core.records.training import Unreadable
from compress.core.records.warnings import RunWarning, texts


@dataclass(frozen=True)
class PreparedFiles:
    """Classes, files and warnings of a source; `paths` is set where the training images stay in their files."""

    classes: tuple[str, ...]
    train_images: File
    train_labels: File
    test_images: File
    test_labels: File
    unreadable: tuple[Unreadable, ...] = ()
    paths: File | None = None
    warnings: tuple[RunWarning, ...] = ()
    value_range: tuple[float, float] | None = None
    train_names: File | None = None
    test_names: File | None = None
    train_groups: File | None = None
    test_groups: File | None = None

    def record(self) -> dict[str, Any]:
        """Return the fields as `Prepared` keeps them, with its two lists of sentences."""
        kept = {
            "warnings": texts(self.warnings, affects_verdict=False),
            "cautions": texts(self.warnings, affects_verdict=True),
        }
        return {**vars(self), **kept}
