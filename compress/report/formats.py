"""Numbers as text. None stands for a value that was not measured."""

from __future__ import annotations

import math
from typing import Any, TypeGuard

from compress.report.schema.base import Interval

MINUS = "\u2212"


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a JSON value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def significant(value: float, digits: int = 3) -> str:
    """Return a number with so many significant digits and no exponent."""
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def fixed(value: Any, digits: int) -> str | None:
    """Return a number with so many decimals."""
    return f"{value:.{digits}f}" if is_number(value) else None


def chance(p: float) -> str:
    """Return the p-value of a test with its sign, "= 0.034"; below 0.001 it is not shown exactly."""
    return "< 0.001" if p < 0.001 else f"= {significant(p, 2)}"


def percent(share: Any, digits: int = 1) -> str | None:
    """Return a fraction in percent."""
    return f"{100 * share:.{digits}f} %" if is_number(share) else None


def milliseconds(value: Any) -> str | None:
    """Return a time in milliseconds."""
    return f"{significant(value)} ms" if is_number(value) else None


def size(value: Any) -> str | None:
    """Return bytes in decimal units."""
    if not is_number(value):
        return None
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= scale:
            return f"{significant(value / scale)} {unit}"
    return f"{value:.0f} bytes"


def count(value: Any) -> str | None:
    """Return a count, shortened from ten thousand on."""
    if not is_number(value):
        return None
    for unit, least, scale in (("G", 1e9, 1e9), ("M", 1e6, 1e6), ("k", 1e4, 1e3)):
        if abs(value) >= least:
            return f"{significant(value / scale)} {unit}"
    return f"{value:,.0f}"


def duration(seconds: Any) -> str | None:
    """Return seconds in seconds, minutes or hours."""
    if not is_number(seconds):
        return None
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.1f} s"


def signed(value: float, digits: int = 1) -> str:
    """Return a number with its sign and a typographic minus."""
    text = f"{value:+.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", MINUS)


def interval(ends: Interval | None, scale: float = 1.0, digits: int = 1) -> str:
    """Return `[low, high]`; nothing without an interval."""
    return "" if ends is None else f"[{scale * ends[0]:.{digits}f}, {scale * ends[1]:.{digits}f}]"


def sentence_case(text: str) -> str:
    """Return a text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def thousands(number: int | None) -> str:
    """Return a whole number with separators."""
    return "?" if number is None else f"{number:,}"
