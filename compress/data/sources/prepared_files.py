"""What a source of data leaves on disk, whichever source it is."""

from __future__ import annotations

from dataclasses import dataclass

from compress.core.records.base import File
from compress.core.records.training import Unreadable


@dataclass(frozen=True)
class PreparedFiles:
    """Files and classes as in `Prepared`. `paths`: where the training pictures stay in their files. `warnings`, `cautions`: sentences."""

    classes: tuple[str, ...]
    train_images: File
    train_labels: File
    test_images: File
    test_labels: File
    unreadable: tuple[Unreadable, ...] = ()
    paths: File | None = None
    warnings: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()
