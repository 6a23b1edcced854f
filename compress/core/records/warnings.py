"""A warning of a run: on the console, in report.json and on the page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class RunWarning:
    """Something that the user should know, in one sentence.

    `affects_verdict`: whether accuracies, times or the verdict may mean little because of it. Such a warning stands
    beside the verdict; in report.json it is one of the `cautions`.
    """

    text: str
    affects_verdict: bool = False

    def __str__(self) -> str:
        return self.text


def texts(warnings: Iterable[RunWarning], *, affects_verdict: bool) -> tuple[str, ...]:
    """Return the sentences of those warnings that affect the verdict, or of those that do not."""
    return tuple(warning.text for warning in warnings if warning.affects_verdict is affects_verdict)
