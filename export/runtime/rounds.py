"""What the rounds of a latency measurement say about the machine: load of others, drift, two speeds.

Standard library and numpy only; runs on Python 3.8, because it travels inside the bundle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

DRIFT_LIMIT = (
    0.1  # last third of the rounds against the first: beyond it the machine was not the same machine throughout
)
TWO_SPEEDS = 1.1  # times the faster rounds' median: what counts as two speeds
LEAST_ROUNDS, LEAST_SHARE = 5, 0.25  # rounds that must be left without interrupted runs, and their share of all


@dataclass(frozen=True)
class Attempt:
    """The samples of each model, one array a round, and what other processes did.

    `interrupted`: as `parts`, which runs lost their core for a while; None where the system does not tell.
    """

    parts: dict[str, list[np.ndarray]]
    round_other_cores: list[float | None]
    other_seconds: float | None  # CPU seconds
    wall: float
    contaminated: bool | None
    interrupted: dict[str, list[np.ndarray]] | None = None


def join(attempts: list[Attempt]) -> Attempt:
    seconds = [one.other_seconds for one in attempts if one.other_seconds is not None]
    flags = [one.contaminated for one in attempts]
    return Attempt(
        parts={name: [part for one in attempts for part in one.parts[name]] for name in attempts[0].parts},
        round_other_cores=[cores for one in attempts for cores in one.round_other_cores],
        other_seconds=sum(seconds) if len(seconds) == len(attempts) else None,
        wall=sum(one.wall for one in attempts),
        contaminated=None if None in flags else any(flags),
        interrupted=None
        if any(one.interrupted is None for one in attempts)
        else {name: [part for one in attempts for part in (one.interrupted or {})[name]] for name in attempts[0].parts},
    )


def uninterrupted(attempt: Attempt, crowded: str | None = None) -> tuple[Attempt, dict[str, int], str | None]:
    """(the attempt without runs that were interrupted, how many were left out by model, why they could not be).

    A long run is interrupted far more often than a short one, so ratios are wrong with them, in every round alike: a model of 3.4 ms seemed to take 7.5
    ms where one of 0.13 ms took its 0.13 (2 cores, four busy processes). A round in which a model has no other run is left out for all.
    `crowded`: see `conditions.too_many_threads`; then nobody can tell which runs others interrupted, and none is left out.
    """
    if attempt.interrupted is None:
        return attempt, {}, None
    flags = attempt.interrupted
    counts = {name: int(sum(part.sum() for part in flags[name])) for name in flags}
    if not any(counts.values()):
        return attempt, counts, None
    if crowded:
        return attempt, {}, crowded if attempt.contaminated else None
    rounds = [
        place
        for place in range(len(attempt.round_other_cores))
        if not any(parts[place].all() for parts in flags.values())
    ]
    if len(rounds) < max(
        min(LEAST_ROUNDS, len(attempt.round_other_cores)), LEAST_SHARE * len(attempt.round_other_cores)
    ):
        if not attempt.contaminated:  # a slow model of several threads, whose switches are its own
            return attempt, {}, None
        worst = max(counts, key=lambda name: counts[name] / sum(len(part) for part in flags[name]))
        runs = sum(len(part) for part in flags[worst])
        return (
            attempt,
            {},
            f"other processes interrupted {worst} in {counts[worst]} of {runs} runs, too many to leave them out",
        )
    parts = {name: [attempt.parts[name][place][~flags[name][place]] for place in rounds] for name in flags}
    return (
        replace(
            attempt,
            parts=parts,
            round_other_cores=[attempt.round_other_cores[place] for place in rounds],
            interrupted=None,
        ),
        counts,
        None,
    )


def disturbances(attempt: Attempt) -> tuple[str, ...]:
    """Sentences about what makes absolute times doubtful."""
    found = []
    if attempt.contaminated and attempt.other_seconds is not None:
        found.append(f"other processes used {attempt.other_seconds / attempt.wall:.2f} cores while it was measured")
    changes = [
        value
        for parts in attempt.parts.values()
        if (value := drift([float(np.median(part)) for part in parts])) is not None
    ]
    change = (
        float(np.median(changes)) if changes else 1.0
    )  # of all models: one slow round of one model is no drift of the machine
    if abs(change - 1) > DRIFT_LIMIT:
        found.append(
            f"the machine became {abs(change - 1):.0%} {'slower' if change > 1 else 'faster'} from the first to the last third of the rounds"
        )
    return tuple(found)


def drift(round_medians_ms: Sequence[float]) -> float | None:
    """Median of the last third of rounds over that of the first; None with fewer than six rounds."""
    third = len(round_medians_ms) // 3
    if third < 2:
        return None
    return float(np.median(round_medians_ms[-third:]) / np.median(round_medians_ms[:third]))


def two_speeds(round_medians_ms: Sequence[float]) -> tuple[float, float, int] | None:
    """(faster median, slower median, number of slower rounds) where rounds fall into two groups; None where they do not.

    Two groups explain at least 85 % of the variance (of one normal distribution 64 %, of a uniform one 75 %), lie TWO_SPEEDS apart, and
    each holds a fifth of the rounds. Source: Otsu 1979, the threshold of the largest between-class variance.
    """
    values = np.sort(np.asarray(round_medians_ms, dtype=np.float64))
    least = max(3, len(values) // 5)
    total = float(((values - values.mean()) ** 2).sum())
    if len(values) < 2 * least or total == 0:
        return None
    inside = [
        float(((values[:cut] - values[:cut].mean()) ** 2).sum() + ((values[cut:] - values[cut:].mean()) ** 2).sum())
        for cut in range(least, len(values) - least + 1)
    ]
    cut = least + int(np.argmin(inside))
    fast, slow = float(np.median(values[:cut])), float(np.median(values[cut:]))
    return (fast, slow, len(values) - cut) if min(inside) <= 0.15 * total and slow >= TWO_SPEEDS * fast else None


def two_speeds_note(name: str, round_medians_ms: Sequence[float]) -> str | None:
    found = two_speeds(round_medians_ms)
    if found is None:
        return None
    fast, slow, count = found
    return (
        f"{name} ran at two speeds, {fast:.3g} and {slow:.3g} ms ({count} of {len(round_medians_ms)} rounds slower): "
        "the clock or a neighbour on the same core changed"
    )
