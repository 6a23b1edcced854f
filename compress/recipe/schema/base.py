"""Types that several sections share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
VERSION_PATTERN = r"^[0-9]+\.[0-9]+(\.[0-9]+)?$"
# Descriptions for messages.
PATTERNS = {
    NAME_PATTERN: "a name of letters, digits, '.', '_' and '-' that begins with a letter or a digit",
    VERSION_PATTERN: "a version such as '1.19'",
}


def _share_or_count(value: Any) -> Any:
    """Check for a share in (0, 1) or a whole number from 1 on, with one message for both branches of the union."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and (0 < value < 1 or (isinstance(value, int) and value >= 1)):
        return value
    shown = repr(value) if isinstance(value, str) or number else "something else"
    raise ValueError(f"expected a share between 0 and 1 or a whole number of images, got {shown}")


Share = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
# A share below 1, or a number of images.
ShareOrCount = Annotated[Share | Count, BeforeValidator(_share_or_count)]


def _of_one(value: object) -> object:
    if isinstance(value, (int, float)) and value > 1:
        raise ValueError("must be of pixels in [0, 1]: divide by 255")
    return value


Level = Annotated[float, Field(ge=0, le=1), BeforeValidator(_of_one)]
Spread = Annotated[float, Field(gt=0, le=1), BeforeValidator(_of_one)]


class Section(BaseModel):
    """A frozen record of plain values; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Normalize(Section):
    """Per-channel mean and standard deviation of pixels in [0, 1], RGB."""

    mean: tuple[Level, Level, Level] = Field(description="mean of red, green, blue, of pixels in [0, 1]")
    std: tuple[Spread, Spread, Spread] = Field(
        description="standard deviation of red, green, blue, of pixels in [0, 1]"
    )
