"""Numbers as text."""

from __future__ import annotations

import math
from typing import Any, TypeGuard


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a JSON value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def significant(value: float, digits: int = 3) -> str:
    """Return a number with so many significant digits and no exponent."""
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def chance(p: float) -> str:
    """Return the p-value of a test with its sign, "= 0.034"; below 0.001 it is not shown exactly."""
    return "< 0.001" if p < 0.001 else f"= {significant(p, 2)}"


def signed(value: float, digits: int = 1) -> str:
    """Return a number with its sign and a typographic minus."""
    text = f"{value:+.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", "\u2212")
