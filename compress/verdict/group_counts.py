"""Says whether a number of groups settles a limit, and how many would."""

from __future__ import annotations

import math

from compress.core.plural import agree, plural
from compress.verdict.clusters import FEWEST_GROUPS
from compress.verdict.number_text import estimate_text

# More groups than anybody has: the value sits on the limit.
MOST_GROUPS = 10**6


def judge_groups(
    groups: int, clear: bool, value: float, interval: tuple[float, float], limit: float
) -> tuple[bool, str]:
    """Return whether the groups of the test images settle a limit, and the end of the sentence about it.

    Args:
        groups: groups of test images.
        clear: whether the interval lies on one side of the limit.
        value: the estimate.
        interval: its 95 % confidence interval.
        limit: in the same unit.
    """
    shown = f"; {plural(groups, 'group')} of test images"
    if groups < FEWEST_GROUPS:
        return False, f"{shown} {agree(groups, 'is', 'are')} too few to decide: at least {FEWEST_GROUPS} are needed"
    if clear:
        return True, shown
    edge = interval[1] if value < limit else interval[0]
    needed = groups_for_margin(groups, abs(limit - value), abs(edge - value))
    if needed <= MOST_GROUPS:
        return False, f"{shown} are too few to decide: about {estimate_text(needed)} would settle it"
    return False, f"{shown}; it is so close to the limit that no number of groups would settle it"


def groups_for_margin(groups: int, distance: float, half: float) -> int:
    """Return about how many groups put an interval clear of a limit, at least FEWEST_GROUPS.

    Args:
        groups: groups now.
        distance: from the estimate to the limit.
        half: from the estimate to the end of the interval beyond the limit.
    """
    if distance <= 0:
        return MOST_GROUPS + 1
    return max(FEWEST_GROUPS, groups, math.ceil(min(groups * (half / distance) ** 2, MOST_GROUPS + 1)))
