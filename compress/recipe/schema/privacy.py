"""`report`, `bundle`: which of the user's images the results hold."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from compress.recipe.schema.base import Section


class ReportImages(Section):
    """What the report shows."""

    images: bool = Field(
        default=True,
        description="false: no image is in report.html, pictures.npz and near_duplicates.npz, which name the files",
    )


class BundleImages(Section):
    """What the bundle for the device holds beside the files."""

    images: Literal["test", "synthetic"] = Field(
        default="test",
        description="test: `device.samples` test images, and `device.photos` original files; synthetic: drawn "
        "patterns with the files' answers; the device is checked by them, accuracy is not measured there, and no image "
        "of yours leaves this machine",
    )
