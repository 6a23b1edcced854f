"""What judging a limit gives, and how an interval is held against it."""

from __future__ import annotations

from typing import Literal

Verdict = Literal["passed", "failed", "undecided", "not judged"]
Interval = tuple[float, float]
# Value, its interval, verdict, sentence.
Judgement = tuple[float | None, Interval | None, Verdict, str]


def verdict_of_interval(interval: Interval, limit: float, *, at_most: bool) -> Verdict:
    """Return passed or failed if the whole interval lies on one side of the limit, undecided if it touches it."""
    low, high = interval if at_most else (-interval[1], -interval[0])
    bound = limit if at_most else -limit
    return "passed" if high < bound else "failed" if low > bound else "undecided"


def not_measured(what: str, why: str | None = None) -> Judgement:
    """Return the judgement of a quantity that was not measured."""
    reason = f" ({why})" if why else ""
    return None, None, "not judged", f"{what} was not measured{reason}, so this limit is not judged."
