"""Requirements that only the device itself can answer, and what `keep: faster` decides by its times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compress.recipe.schema import Require

# Limits on numbers that another device measures differently.
LIMITS = ("max_latency_ms", "min_speedup", "min_int8_speedup", "max_memory_bytes")
Row = dict[str, Any]


def elsewhere(require: Require) -> Require:
    """Return the limits on numbers that are the same on every device."""
    return Require(**{name: limit for name, limit in require.model_dump().items() if name not in LIMITS})


def keeps_int8(int8: str, floats: str, rows: Sequence[Row], target: str) -> tuple[bool, str]:
    """Decide by a device's times whether int8 ships under `quantize.keep: faster`.

    Int8 is faster if the whole interval of the ratio lies above 1. Without times int8 ships.

    Args:
        int8: the student's int8 file.
        floats: the student's float file.
        rows: the device's answer, one row a file.
        target: the device's name.

    Returns:
        Whether int8 ships, and one sentence that says why.
    """
    own = next((row for row in rows if row["file"] == int8), {})
    ratio = (own.get("speedup_over") or {}).get(floats)
    if ratio is not None and (unfit := _unfit(own)):
        why = f"its speed on {target} could not be judged ({unfit})"
        return True, f"{int8} ships despite keep: faster: {why}."
    if ratio is None:
        return True, f"{int8} ships despite keep: faster: {target} gave no times to judge it by."
    numbers = f"{ratio[0]:.2f}x [{ratio[1]:.2f}, {ratio[2]:.2f}] its speed"
    if ratio[1] > 1:
        return True, f"{int8} ships: it is faster than the float student on {target} ({numbers}), as keep: faster asks."
    why = f"int8 is not measurably faster than the float student on {target} ({numbers}; keep: faster)"
    return False, f"{floats} ships instead of {int8}: {why}."


def _unfit(row: Row) -> str | None:
    """Return why a device's times are too long and its ratios doubtful; None where they are not."""
    known = row.get("conditions") or {}
    why: str | None = None if known.get("cpu_ratios") else known.get("unfit")
    return why
