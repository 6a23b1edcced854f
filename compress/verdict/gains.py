"""What distillation, tuning and int8 gained, in one sentence each."""

from __future__ import annotations

from collections.abc import Sequence

from compress.verdict.intervals import PairedDrop
from compress.verdict.number_text import number_text, points_text


def distillation_gain(drop: PairedDrop) -> str:
    """Describe what the teacher gained. `drop`: the distilled student against the baseline as the reference."""
    return _gain(drop, "distillation", "the teacher")


def tuning_gain(drop: PairedDrop) -> str:
    """Describe what quantisation-aware training gained. `drop`: tuned int8 against static int8 as the reference."""
    return _gain(drop, "tuning", "tuning", " over static int8", " against static int8")


def _gain(drop: PairedDrop, what: str, helper: str, over: str = "", against: str = "") -> str:
    gain, low, high = -drop.drop_points, -drop.high, -drop.low
    numbers = f"{points_text(gain, sign=True)} [{points_text(low)}, {points_text(high)}] points"
    if low > 0:
        return f"{what} {numbers}{over}"
    return f"{what} hurt: {numbers}{against}" if high < 0 else f"no evidence that {helper} helped: {numbers}{against}"


def int8_gain(
    speedup: float, ci95: Sequence[float] | None, where: str = "here", unfit: str | None = None, cpu: str | None = None
) -> str:
    """Describe how fast int8 is against the float student on one machine.

    Args:
        speedup: float latency / int8 latency.
        ci95: its 95 % interval (low, high); None where there were no rounds.
        where: "here", or "on" and the device's name.
        unfit: why the times cannot be used; see `facts.Facts`.
        cpu: why the ratio is one of CPU time, which is fit; see `facts.Facts`.
    """
    if cpu is not None:
        where += f" by CPU time of one thread ({cpu})"
    elif unfit is not None:
        return f"how fast int8 is against the float student {where} is not known: {unfit}."
    times = f"{number_text(speedup)}x"
    if ci95 is None:
        return f"int8 runs at {times} the float student's speed {where}; without rounds there is no interval."
    numbers = f"{times} [{number_text(ci95[0])}, {number_text(ci95[1])}]"
    if ci95[0] > 1:
        return f"int8 is {numbers} as fast as the float student {where}."
    if ci95[1] < 1:
        return f"int8 is slower than the float student {where}: {numbers} its speed; it only saves space."
    return f"int8 is as fast as the float student {where}, within noise: {numbers}; it only saves space."
