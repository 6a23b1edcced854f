"""The base of all parts of report.json: unknown keys are kept, and numbers stay as they were written."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, WithJsonSchema, model_validator

# An integer stays an integer: 2000000 is not rewritten as 2000000.0.
Number = Annotated[int | float, WithJsonSchema({"type": "number"})]
Interval = tuple[Number, Number]
# A ratio and its 95 % interval: [ratio, low, high].
Ratio = tuple[Number, Number, Number]


class ReportPart(BaseModel):
    """A part of report.json: any key may be missing, and keys that this version does not know are kept."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_missing(cls, data: Any) -> Any:
        """Drop a null where the key's default says more, such as an empty list."""
        if not isinstance(data, dict):
            return data
        filled = {field.alias or name for name, field in cls.model_fields.items() if field.default is not None}
        return {key: value for key, value in data.items() if value is not None or key not in filled}

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values: the keys that were read or set, then the unknown ones."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)
