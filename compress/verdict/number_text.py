"""Numbers as the verdict's sentences show them."""

from __future__ import annotations


def points_text(value: float, *, sign: bool = False) -> str:
    """Format points of accuracy with one decimal, or with two where one would hide which side of zero they are on."""
    digits = 2 if value and abs(value) < 0.0995 else 1
    value = round(value, digits) + 0.0  # adding 0.0 turns -0.0 into 0.0
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def percent_text(share: float) -> str:
    """Format a fraction as per cent with one decimal."""
    return f"{100 * share:.1f} %"


def number_text(value: float) -> str:
    """Format whole numbers with separators, others with three or more significant digits."""
    if float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"


def bytes_text(count: float) -> str:
    """Format a size in bytes."""
    return f"{count:,.0f} bytes"


def estimate_text(count: int) -> str:
    """Format an estimated count: two significant digits, rounded up."""
    step = 10 ** max(len(str(count)) - 2, 0)
    return f"{-(-count // step) * step:,}"
