"""Student's t distribution, from the incomplete beta function's continued fraction."""

from __future__ import annotations

import math
from functools import cache

_TERMS, _EPSILON, _TINY = 300, 1e-15, 1e-300


def _fraction(a: float, b: float, x: float) -> float:
    """Return the continued fraction of the incomplete beta function, by Lentz's method (Press et al. 2007, 6.4)."""
    c, d = 1.0, 1.0 / _away(1.0 - (a + b) * x / (a + 1.0))
    found = d
    for m in range(1, _TERMS):
        for step in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 / _away(1.0 + step * d)
            c = _away(1.0 + step / c)
            found *= d * c
        if abs(d * c - 1.0) < _EPSILON:
            break
    return found


def _away(value: float) -> float:
    """Return a value that may be divided by."""
    return value if abs(value) > _TINY else _TINY


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Return the regularised incomplete beta function of x in [0, 1]."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(a, b, x) / a
    return 1.0 - front * _fraction(b, a, 1.0 - x) / b


def two_sided_p(t: float, degrees: int) -> float:
    """Return the probability of a value at least as far from 0 as t."""
    if math.isinf(t):
        return 0.0
    return _incomplete_beta(degrees / 2, 0.5, degrees / (degrees + t * t))


@cache
def quantile(confidence: float, degrees: int) -> float:
    """Return the two-sided quantile: 2.262 for 0.95 and 9 degrees of freedom."""
    if not 0 < confidence < 1 or degrees < 1:
        raise ValueError(f"need 0 < confidence < 1 and degrees > 0, got {confidence} and {degrees}")
    low, high = 0.0, 2.0
    while two_sided_p(high, degrees) > 1 - confidence:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided_p(middle, degrees) > 1 - confidence else (low, middle)
    return (low + high) / 2
