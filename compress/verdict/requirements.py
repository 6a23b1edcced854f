"""Requirements judged from measured numbers: passed, failed, undecided or not judged, each with one sentence.

A measured quantity with an interval passes only when the whole interval lies on the good side of the limit, fails when it lies on the
other side, and is undecided when the interval touches the limit. Exact quantities (bytes) meet a limit that they equal. What was not
measured is `not judged`; a run with such a requirement is undecided, because it asked for something that nobody has shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from compress.recipe.schema import Require
from compress.verdict.intervals import (
    PairedDrop,
    certifiable_margin,
    pictures_for_margin,
    pictures_needed,
    pictures_needed_top1,
    samples_needed,
    wilson,
)

Verdict = Literal["passed", "failed", "undecided", "not judged"]
Status = Literal["passed", "failed", "undecided"]
Interval = tuple[float, float]

EXIT_CODES: dict[str, int] = {"passed": 0, "failed": 5, "undecided": 6}


@dataclass(frozen=True)
class Facts:
    """What was measured about the file that ships. None: not measured."""

    file: str
    target: str  # where time and memory were measured
    drop: PairedDrop | None = None  # against the float teacher
    correct: int | None = None  # right answers out of `images` test pictures
    images: int | None = None
    latency_ms: float | None = None  # p50, batch 1
    latency_ci95: Interval | None = None  # over rounds
    timed_runs: int | None = None
    speedup: float | None = None  # x teacher, from ratios within rounds
    speedup_ci95: Interval | None = None
    int8_speedup: float | None = None  # of the int8 file, x float student, from ratios within rounds
    int8_speedup_ci95: Interval | None = None
    bytes: int | None = None
    teacher_bytes: int | None = None
    peak_memory_bytes: int | None = None
    int8_mac_share: float | None = None
    disturbed: str | None = None  # why the timing is noisy, e.g. "other processes used 40 % of a core"
    unfit: str | None = (
        None  # why it is too long, and ratios are wrong in every round alike: see export.runtime.rounds.uninterrupted
    )
    untimed: str | None = (
        None  # why the file could not be timed, e.g. "it is built for arm64 and this machine is x86-vnni"
    )
    sha256: str | None = None  # of the file
    precision: str | None = None  # fp32 | int8


@dataclass(frozen=True)
class Requirement:
    """One row of `requirements` in report.json. `where` is path:line:column in the recipe."""

    name: str
    target: str
    file: str
    limit: float
    value: float | None
    ci95: Interval | None
    verdict: Verdict
    where: str
    sentence: str
    sha256: str | None = None
    precision: str | None = None


Judgement = tuple[float | None, Interval | None, Verdict, str]


def judge(require: Require, facts: Facts, where: Mapping[str, str] | None = None) -> list[Requirement]:
    """Hold the facts against every limit that the recipe sets, in the recipe's order of keys.

    `where` maps a requirement's name to its position in the recipe.
    """
    rows = []
    for name, limit in require.model_dump().items():
        if limit is not None:
            value, interval, verdict, sentence = JUDGES[name](facts, limit)
            place = (where or {}).get(name, "")
            rows.append(
                Requirement(
                    name,
                    facts.target,
                    facts.file,
                    limit,
                    value,
                    interval,
                    verdict,
                    place,
                    sentence,
                    facts.sha256,
                    facts.precision,
                )
            )
    return rows


class Judged(Protocol):
    """Anything with a verdict."""

    @property
    def verdict(self) -> Verdict: ...


def status(requirements: Iterable[Judged]) -> Status:
    """The verdict on the run: failed beats undecided; a requirement that nobody could judge makes it undecided."""
    verdicts = {row.verdict for row in requirements}
    if "failed" in verdicts:
        return "failed"
    return "undecided" if verdicts - {"passed"} else "passed"


def interval(values: Sequence[float] | None) -> Interval | None:
    """A measured [low, high] as the facts have it."""
    return (values[0], values[1]) if values else None


def exit_code(verdict: Status) -> int:
    """0 passed, 5 failed, 6 undecided."""
    return EXIT_CODES[verdict]


def _side(interval: Interval, limit: float, *, at_most: bool) -> Verdict:
    """On which side of the limit an interval lies; touching it is undecided."""
    low, high = interval if at_most else (-interval[1], -interval[0])
    bound = limit if at_most else -limit
    return "passed" if high < bound else "failed" if low > bound else "undecided"


def _exact(
    value: float | None,
    limit: float,
    what: str,
    show: Callable[[float], str],
    *,
    at_most: bool,
    untimed: str | None = None,
) -> Judgement:
    """Judge a quantity without an interval. `untimed`: why it could not be measured."""
    if value is None:
        return (
            None,
            None,
            "not judged",
            f"{what} was not measured{f' ({untimed})' if untimed else ''}, so this limit is not judged.",
        )
    met = value <= limit if at_most else value >= limit
    bound = "limit" if at_most else "minimum"
    return value, None, "passed" if met else "failed", f"{what} is {show(value)}; the {bound} is {show(limit)}."


def _timed(
    value: float | None, interval: Interval | None, limit: float, facts: Facts, what: str, unit: str, at_most: bool
) -> Judgement:
    """Judge a timing by its interval over rounds; when it is too wide, say how many runs would settle it."""
    if value is None:
        why = f" ({facts.untimed})" if facts.untimed else ""
        return None, None, "not judged", f"{what} was not measured{why}, so this limit is not judged."
    bound = f"the {'limit' if at_most else 'minimum'} is {_number(limit)}{unit}"
    if interval is None:
        why = "without rounds there is no interval to judge it by: raise validate.repeats"
        return value, None, "undecided", f"{what} is {_number(value)}{unit} and {bound}, but {why}."
    verdict = _side(interval, limit, at_most=at_most)
    sentence = f"{what} is {_number(value)}{unit} [{_number(interval[0])}, {_number(interval[1])}]; {bound}"
    if facts.unfit and not (
        at_most and verdict == "passed"
    ):  # what meets a limit although it took too long does meet it
        cure = (
            "" if "; lower " in facts.unfit else ": measure again on a quiet machine"
        )  # too many threads: a quiet machine is no cure
        return value, interval, "undecided", f"{sentence}, but {facts.unfit}{cure}."
    if verdict == "undecided":
        edge = interval[1] if value < limit else interval[0]
        needed = samples_needed(facts.timed_runs, value, edge, limit) if facts.timed_runs else None
        # A median outside its own bootstrap interval needs no more runs by the formula, but the verdict still does.
        more = (
            f"about {_count(needed)} timed runs would settle it"
            if needed and needed > (facts.timed_runs or 0)
            else "measure again"
        )
        noise = f"; {facts.disturbed}" if facts.disturbed else ""
        sentence += f", inside the interval: {more} (validate.repeats), on a quiet machine{noise}"
    elif facts.disturbed:
        sentence += f"; {facts.disturbed}, but the interval over all rounds lies clear of the limit"
    return value, interval, verdict, sentence + "."


def _top1_drop(facts: Facts, limit: float) -> Judgement:
    drop = facts.drop
    if drop is None:
        return None, None, "not judged", "The drop against the teacher was not measured, so this limit is not judged."
    interval = (drop.low, drop.high)
    verdict = _side(interval, limit, at_most=True)
    side = "below" if drop.drop_points >= 0 else "above"
    numbers = f"drop {drop.drop_points:.2f} [{drop.low:.2f}, {drop.high:.2f}]"
    sentence = f"Top-1 is {abs(drop.drop_points):.2f} points {side} the teacher's ({numbers}); the limit is {_number(limit)} points"
    if verdict == "undecided":
        sentence += ". " + _what_pictures_can_do(drop, limit)
    return drop.drop_points, interval, verdict, sentence + "."


def _what_pictures_can_do(drop: PairedDrop, limit: float) -> str:
    """What the test pictures could certify for a model without a drop, how many the limit takes, how many would settle the drop seen."""
    flips = drop.lost + drop.gained
    margin = certifiable_margin(drop.n, flips)
    sentence = f"Your {drop.n:,} test pictures can certify {margin:.1f} points"
    enough = pictures_for_margin(drop.n, flips, limit) if margin > limit else None
    if enough:
        sentence += f"; {_count(enough)} are needed for {_number(limit)}"
    needed = pictures_needed(drop, limit)
    if needed:
        return f"{sentence}; at the drop seen, about {_count(needed)} would settle it"
    return f"{sentence}; the drop sits on the limit, so no number of them would settle it"


def _top1(facts: Facts, limit: float) -> Judgement:
    if facts.correct is None or not facts.images:
        return None, None, "not judged", "Top-1 was not measured, so this limit is not judged."
    value, interval = facts.correct / facts.images, wilson(facts.correct, facts.images)
    verdict = _side(interval, limit, at_most=False)
    sentence = f"Top-1 is {_percent(value)} [{_percent(interval[0])}, {_percent(interval[1])}]; the minimum is {_percent(limit)}"
    if verdict == "undecided":
        needed = pictures_needed_top1(facts.correct, facts.images, limit)
        more = (
            f"about {_count(needed)} would settle it"
            if needed
            else "it sits on the minimum, so no number of them would settle it"
        )
        sentence += f". {facts.images:,} test pictures are too few to tell; {more}"
    return value, interval, verdict, sentence + "."


def _compression(facts: Facts, limit: float) -> Judgement:
    ratio = facts.teacher_bytes / facts.bytes if facts.teacher_bytes and facts.bytes else None
    return _exact(ratio, limit, "The teacher's size over the file's size", lambda x: f"{_number(x)}x", at_most=False)


JUDGES: dict[str, Callable[[Facts, float], Judgement]] = {
    "max_top1_drop": _top1_drop,
    "min_top1": _top1,
    "max_latency_ms": lambda f, limit: _timed(
        f.latency_ms, f.latency_ci95, limit, f, "The median latency of one picture", " ms", True
    ),
    "min_speedup": lambda f, limit: _timed(
        f.speedup, f.speedup_ci95, limit, f, "The speed-up over the teacher", "x", False
    ),
    "min_int8_speedup": lambda f, limit: _timed(
        f.int8_speedup, f.int8_speedup_ci95, limit, f, "The speed-up of int8 over the float student", "x", False
    ),
    "max_bytes": lambda f, limit: _exact(f.bytes, limit, "The file's size", _bytes, at_most=True),
    "min_compression": _compression,
    "max_memory_bytes": lambda f, limit: _exact(
        f.peak_memory_bytes, limit, "Peak memory", _bytes, at_most=True, untimed=f.untimed
    ),
    "min_int8_mac_share": lambda f, limit: _exact(
        f.int8_mac_share, limit, "The integer share of the arithmetic", _percent, at_most=False, untimed=f.untimed
    ),
}


def distillation_worth(drop: PairedDrop) -> str:
    """What the teacher was worth, in one phrase. `drop`: the distilled student against the baseline (reference: the baseline)."""
    return _worth(drop, "distillation", "the teacher")


def tuning_worth(drop: PairedDrop) -> str:
    """What training with fake quantisation was worth. `drop`: the tuned int8 file against the static one (reference: the static one)."""
    return _worth(drop, "tuning", "tuning", " over static int8", " against static int8")


def _worth(drop: PairedDrop, what: str, helper: str, over: str = "", against: str = "") -> str:
    gain, low, high = -drop.drop_points, -drop.high, -drop.low
    numbers = f"{_points(gain, sign=True)} [{_points(low)}, {_points(high)}] points"
    if low > 0:
        return f"{what} {numbers}{over}"
    return f"{what} hurt: {numbers}{against}" if high < 0 else f"no evidence that {helper} helped: {numbers}{against}"


def int8_against_float(
    speedup: float, ci95: Sequence[float] | None, where: str = "here", unfit: str | None = None
) -> str:
    """What integer arithmetic is worth on a machine, in one sentence. `speedup`: float latency / int8 latency; `where`: `here`, `on ssh://pi`.

    `unfit`: see `Facts`.
    """
    if unfit is not None:
        return f"how fast int8 is against the float student {where} is not known: {unfit}."
    if ci95 is None:
        return (
            f"int8 runs at {_number(speedup)}x the float student's speed {where}; without rounds there is no interval."
        )
    numbers = f"{_number(speedup)}x [{_number(ci95[0])}, {_number(ci95[1])}]"
    if ci95[0] > 1:
        return f"int8 is {numbers} as fast as the float student {where}."
    if ci95[1] < 1:
        return f"int8 is slower than the float student {where}: {numbers} its speed; what it gains is size."
    return f"int8 is as fast as the float student {where}, within noise: {numbers}; what it gains is size."


def _points(value: float, *, sign: bool = False) -> str:
    """One decimal, or two where one would hide which side of zero it is on."""
    digits = 2 if value and abs(value) < 0.0995 else 1
    value = round(value, digits) + 0.0  # adding 0.0 turns -0.0 into 0.0
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _number(value: float) -> str:
    """Whole numbers with separators; others with three or more significant digits."""
    if float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"


def _bytes(n: float) -> str:
    return f"{n:,.0f} bytes"


def _count(n: int) -> str:
    """An estimate: two significant digits, rounded up."""
    step = 10 ** max(len(str(n)) - 2, 0)
    return f"{-(-n // step) * step:,}"
