"""Rounds of a latency measurement: interrupted runs, drift of the machine, two speeds.

Standard library and numpy only; runs on Python 3.8, because it travels in the bundle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

# The machine drifted if the last third of the rounds differs from the first by more than this share.
DRIFT_LIMIT = 0.1
# Rounds run at two speeds if the slower ones take this many times the median of the faster ones.
TWO_SPEEDS_RATIO = 1.1
# Rounds that must be left after dropping interrupted runs, and their share of all.
MIN_ROUNDS, MIN_SHARE = 5, 0.25
# Share of a model's runs that are interrupted from which on ratios are taken from CPU time, where it is known: the runs
# that are left are those between two interruptions, and not as many of a long model as of a short one.
CROWDED_SHARE = 0.25


@dataclass(frozen=True)
class Attempt:
    """One attempt at a measurement: the samples of each model, and what other processes did meanwhile.

    Attributes:
        parts: milliseconds of each model's runs, one array a round.
        round_other_cores: cores that other processes used, by round.
        other_seconds: CPU seconds that other processes used; None if unknown.
        wall: seconds of the whole attempt.
        contaminated: whether that disturbs the measurement; None if unknown.
        interrupted: shaped as `parts`, which runs lost their core for a while; None if the system cannot tell.
        cpu: shaped as `parts`, milliseconds of CPU time of the thread that ran the model; None with several threads.
    """

    parts: dict[str, list[np.ndarray]]
    round_other_cores: list[float | None]
    other_seconds: float | None
    wall: float
    contaminated: bool | None
    interrupted: dict[str, list[np.ndarray]] | None = None
    cpu: dict[str, list[np.ndarray]] | None = None


def join(attempts: list[Attempt]) -> Attempt:
    """Merge the attempts at one measurement into a single one with all their rounds."""
    seconds = [one.other_seconds for one in attempts if one.other_seconds is not None]
    flags = [one.contaminated for one in attempts]
    return Attempt(
        parts={name: [part for one in attempts for part in one.parts[name]] for name in attempts[0].parts},
        round_other_cores=[cores for one in attempts for cores in one.round_other_cores],
        other_seconds=sum(seconds) if len(seconds) == len(attempts) else None,
        wall=sum(one.wall for one in attempts),
        contaminated=None if None in flags else any(flags),
        interrupted=_joined([one.interrupted for one in attempts]),
        cpu=_joined([one.cpu for one in attempts]),
    )


def _joined(found: Sequence[dict[str, list[np.ndarray]] | None]) -> dict[str, list[np.ndarray]] | None:
    """Join what is shaped as `parts`; None if one attempt lacks it."""
    known = [one for one in found if one is not None]
    if len(known) < len(found):
        return None
    return {name: [part for one in known for part in one[name]] for name in known[0]}


def crowded(attempt: Attempt) -> str | None:
    """Describe the interruptions of one thread if other processes cause so many that ratios of times are doubtful."""
    if attempt.interrupted is None or not attempt.contaminated:
        return None
    shares = {name: float(np.concatenate(parts).mean()) for name, parts in attempt.interrupted.items()}
    worst = max(shares, key=lambda name: shares[name])
    if shares[worst] <= CROWDED_SHARE:
        return None
    return f"other processes interrupted {worst} in {shares[worst]:.0%} of its runs"


def drop_interrupted(attempt: Attempt, oversubscribed: str | None = None) -> tuple[Attempt, dict[str, int], str | None]:
    """Drop the runs that were interrupted.

    A long run is interrupted far more often than a short one. Ratios that include interrupted runs are wrong, in every
    round alike: a model of 3.4 ms seemed to take 7.5 ms where one of 0.13 ms took its 0.13 (2 cores, four busy
    processes). A round in which any model has only interrupted runs is dropped for all models.

    Args:
        attempt: the attempt, or several joined.
        oversubscribed: the sentence of `conditions.too_many_threads`. If there is one, the model's own threads
            interrupt each other, and no run is dropped.

    Returns:
        The attempt without interrupted runs, how many were dropped by model, and why they could not be dropped (None if
        they were, or if there was no need).
    """
    if attempt.interrupted is None:
        return attempt, {}, None
    flags = attempt.interrupted
    counts = {name: int(sum(part.sum() for part in flags[name])) for name in flags}
    if not any(counts.values()):
        return attempt, counts, None
    if oversubscribed:
        return attempt, {}, oversubscribed if attempt.contaminated else None
    rounds = [
        place
        for place in range(len(attempt.round_other_cores))
        if not any(parts[place].all() for parts in flags.values())
    ]
    total = len(attempt.round_other_cores)
    if len(rounds) < max(min(MIN_ROUNDS, total), MIN_SHARE * total):
        if not attempt.contaminated:  # a slow model with several threads: they interrupt each other
            return attempt, {}, None
        worst = max(counts, key=lambda name: counts[name] / sum(len(part) for part in flags[name]))
        runs = sum(len(part) for part in flags[worst])
        why = f"other processes interrupted {worst} in {counts[worst]} of {runs} runs, too many to leave them out"
        return attempt, {}, why
    parts = {name: [attempt.parts[name][place][~flags[name][place]] for place in rounds] for name in flags}
    loads = [attempt.round_other_cores[place] for place in rounds]
    return replace(attempt, parts=parts, round_other_cores=loads, interrupted=None), counts, None


def disturbances(attempt: Attempt) -> tuple[str, ...]:
    """Return sentences about what makes absolute times doubtful."""
    found = []
    if attempt.contaminated and attempt.other_seconds is not None:
        found.append(f"other processes used {attempt.other_seconds / attempt.wall:.2f} cores while it was measured")
    changes = [
        value
        for parts in attempt.parts.values()
        if (value := drift([float(np.median(part)) for part in parts])) is not None
    ]
    # The median over all models: one slow round of one model is no drift of the machine.
    change = float(np.median(changes)) if changes else 1.0
    if abs(change - 1) > DRIFT_LIMIT:
        way = "slower" if change > 1 else "faster"
        found.append(f"the machine became {abs(change - 1):.0%} {way} from the first to the last third of the rounds")
    return tuple(found)


def drift(round_medians_ms: Sequence[float]) -> float | None:
    """Return the median of the last third of rounds over that of the first; None with fewer than six rounds."""
    third = len(round_medians_ms) // 3
    if third < 2:
        return None
    return float(np.median(round_medians_ms[-third:]) / np.median(round_medians_ms[:third]))


def two_speeds(round_medians_ms: Sequence[float]) -> tuple[float, float, int] | None:
    """Return the faster median, the slower median and the number of slower rounds, or None for a single speed.

    There are two speeds if two groups explain at least 85 % of the variance (of a normal distribution 64 %, of a
    uniform one 75 %), lie TWO_SPEEDS_RATIO apart, and each holds a fifth of the rounds. Source: Otsu 1979, the
    threshold of the largest between-class variance.
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
    return (fast, slow, len(values) - cut) if min(inside) <= 0.15 * total and slow >= TWO_SPEEDS_RATIO * fast else None


def two_speeds_note(name: str, round_medians_ms: Sequence[float]) -> str | None:
    """Describe in one sentence the two speeds at which a model's rounds ran; None for a single speed."""
    found = two_speeds(round_medians_ms)
    if found is None:
        return None
    fast, slow, count = found
    return (
        f"{name} ran at two speeds, {fast:.3g} and {slow:.3g} ms ({count} of {len(round_medians_ms)} rounds slower): "
        "the clock or a neighbour on the same core changed"
    )
