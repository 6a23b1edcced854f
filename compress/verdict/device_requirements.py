"""Requirements that only the device itself can answer: which they are, and what `keep: faster` decides by its times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compress.recipe.schema import Require

LIMITS = (
    "max_latency_ms",
    "min_speedup",
    "min_int8_speedup",
    "max_memory_bytes",
)  # what another device answers differently
Row = dict[str, Any]


def elsewhere(require: Require) -> Require:
    """The limits that no device's clock or memory answers."""
    return Require(**{name: limit for name, limit in require.model_dump().items() if name not in LIMITS})


def keeps_int8(int8: str, floats: str, rows: Sequence[Row], target: str) -> tuple[bool, str]:
    """What `quantize.keep: faster` decides by a device's times, and why, in one sentence; without them int8 ships.

    `int8`, `floats`: the student's files. Faster means that the whole interval of the ratio lies above 1.
    """
    own = next((row for row in rows if row["file"] == int8), {})
    ratio = (own.get("speedup_over") or {}).get(floats)
    if ratio is not None and (unfit := _unfit(own)):
        return (
            True,
            f"{int8} ships although keep: faster was asked for: its speed on {target} could not be judged ({unfit}).",
        )
    if ratio is None:
        return True, f"{int8} ships although keep: faster was asked for: {target} gave no times to judge it by."
    numbers = f"{ratio[0]:.2f}x [{ratio[1]:.2f}, {ratio[2]:.2f}] its speed"
    if ratio[1] > 1:
        return True, f"{int8} ships: it is faster than the float student on {target} ({numbers}), as keep: faster asks."
    return (
        False,
        f"{floats} ships instead of {int8}: int8 is not measurably faster than the float student on {target} ({numbers}; keep: faster).",
    )


def _unfit(row: Row) -> str | None:
    """Why a device's times are too long, and its ratios doubtful."""
    why: str | None = (row.get("conditions") or {}).get("unfit")
    return why
