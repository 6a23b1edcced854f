"""The forms of `data.group`: parent, column:NAME, time_gap:SECONDS, or a regular expression on the path."""

from __future__ import annotations

import re

PARENT, COLUMN, GAP = "parent", "column:", "time_gap:"


def mistake(setting: str) -> str | None:
    """Return what is wrong with a `data.group`; None: nothing."""
    if setting.startswith(GAP):
        try:
            return None if float(setting.removeprefix(GAP)) > 0 else "time_gap: needs a number of seconds above 0"
        except ValueError:
            return "time_gap: needs a number of seconds, such as time_gap:10"
    if setting.startswith(COLUMN):
        return None if setting.removeprefix(COLUMN).strip() else "column: needs the name of a column"
    if setting == PARENT:
        return None
    try:
        re.compile(setting)
    except re.error as error:
        return f"not a regular expression ({error})"
    return None
