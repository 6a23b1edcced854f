"""Random numbers without state: each draw is a function of what it is drawn for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # decode workers draw numbers too, and do without torch
    from torch import Tensor

MASK = (1 << 64) - 1


def _signed(value: int) -> int:
    """Return a 64-bit pattern as torch's int64 holds it."""
    value &= MASK
    return value - (1 << 64) if value >> 63 else value


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift an int64 logically (torch's shift is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def hashed(counter: Tensor, key: int) -> Tensor:
    """Return a well-mixed non-negative int64 (63 bits) for each int64 counter under an integer key.

    Source: the finaliser of splitmix64 (Steele, Lea, Flood 2014), in wrapping int64 arithmetic.
    """
    x = (counter + _signed(key * 0xD1342543DE82EF95)) * _signed(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ _shift_right(x, shift)) * _signed(factor)
    return _shift_right(x ^ _shift_right(x, 31), 1)


def hashed_int(counter: int, key: int) -> int:
    """Return the same number as `hashed` for one counter in [-2**63, 2**63), in plain Python."""
    x = ((counter + key * 0xD1342543DE82EF95) * 0x9E3779B97F4A7C15) & MASK
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = ((x ^ (x >> shift)) * factor) & MASK
    return (x ^ (x >> 31)) >> 1
