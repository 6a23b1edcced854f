"""Every error that a user can meet, with the exit code that the command line ends with.

    CompressError (1: a bug when raised by itself)
    ├── UsageError (2)
    │   └── RecipeError (2)     several problems at once, each with file, line and column
    ├── MissingError (3)        data, weights, a device or an optional package; ends with the command that fixes it
    ├── StageError (4)          a stage could not do its work
    └── Interrupted (130)       Ctrl-C or SIGTERM; the message says how to resume

Exit codes 5 (a requirement is not met) and 6 (undecided) are verdicts, not errors: `verdict/requirements.py`.
"""

from __future__ import annotations

from dataclasses import dataclass


class CompressError(Exception):
    """Base of all errors with a message for the user: one sentence, what is wrong, where, what to do."""

    exit_code = 1


class UsageError(CompressError):
    """The command line or the recipe is wrong."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One mistake in a recipe. `where` is `path:line:column` (1-based) or the command-line flag; `key` is dotted."""

    where: str
    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.key}: {self.message}" if self.key else f"{self.where}: {self.message}"


class RecipeError(UsageError):
    """All mistakes of a recipe at once, one line each."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in problems))


class MissingError(CompressError):
    """Something that the run needs is missing; the message ends with the command that fixes it."""

    exit_code = 3


class StageError(CompressError):
    """A stage failed: parity, a full disk, a wrong answer, a loss that is not finite."""

    exit_code = 4


class LostProcess(StageError):
    """Another process of this training has died."""


class Interrupted(CompressError):
    """The user stopped the run; what was done is kept."""

    exit_code = 130
