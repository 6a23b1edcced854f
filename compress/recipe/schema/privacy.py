"""`report`: which of the user's images the results hold."""

from __future__ import annotations

from pydantic import Field

from compress.recipe.schema.base import Section


class ReportImages(Section):
    """What the report shows."""

    images: bool = Field(
        default=True,
        description="false: no image is in report.html, pictures.npz and near_duplicates.npz, which name the files",
    )
