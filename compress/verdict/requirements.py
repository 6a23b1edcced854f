"""Judges requirements by measured numbers: passed, failed, undecided or not judged, with one sentence each.

A quantity with an interval passes only if the whole interval lies on the good side of the limit. It fails if the whole
interval lies on the other side, and it is undecided if the interval touches the limit. Exact quantities, such as bytes,
meet a limit that they equal. A quantity that was not measured is `not judged`. A run with such a requirement is
undecided, because it asks for something that has not been shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from compress.recipe.schema import Require
from compress.verdict import class_requirements
from compress.verdict.clusters import TEST
from compress.verdict.facts import Facts
from compress.verdict.group_counts import judge_groups
from compress.verdict.intervals import PairedDrop, wilson
from compress.verdict.judgement import Interval, Judgement, Verdict, not_measured, verdict_of_interval
from compress.verdict.number_text import bytes_text, estimate_text, number_text, percent_text
from compress.verdict.sample_size import (
    certifiable_margin,
    images_for_margin,
    images_needed,
    images_needed_top1,
    samples_needed,
)

Status = Literal["passed", "failed", "undecided"]

EXIT_CODES: dict[str, int] = {"passed": 0, "failed": 5, "undecided": 6}


@dataclass(frozen=True)
class Requirement:
    """One row of `requirements` in report.json. `where` is path:line:column in the recipe.

    `class_name`: the class that the limit is on; None: no single one.
    """

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
    class_name: str | None = None


def judge(require: Require, facts: Facts, where: Mapping[str, str] | None = None) -> list[Requirement]:
    """Judge every limit that the recipe sets, in the order of the recipe's keys.

    Args:
        require: the limits; null ones are not judged.
        facts: what was measured about the file that ships.
        where: requirement's name -> its position in the recipe.
    """
    rows = []
    for name, limit in require.model_dump().items():
        place = (where or {}).get(name, "")
        if isinstance(limit, dict):
            for one, least in limit.items():
                judgement = class_requirements.judge_recall_of(one, facts.classes, least)
                rows.append(_row(facts, name, least, judgement, place, one))
        elif limit is not None:
            rows.append(_row(facts, name, limit, JUDGES[name](facts, limit), place))
    return rows


def _row(
    facts: Facts, name: str, limit: float, judgement: Judgement, where: str, class_name: str | None = None
) -> Requirement:
    return Requirement(
        name,
        facts.target,
        facts.file,
        limit,
        *judgement[:3],
        where,
        judgement[3],
        facts.sha256,
        facts.precision,
        class_name,
    )


class Judged(Protocol):
    """Anything with a verdict."""

    @property
    def verdict(self) -> Verdict: ...


def status(requirements: Iterable[Judged]) -> Status:
    """Return the verdict on the run: failed beats undecided; a requirement that is not judged makes it undecided."""
    verdicts = {row.verdict for row in requirements}
    if "failed" in verdicts:
        return "failed"
    return "undecided" if verdicts - {"passed"} else "passed"


def as_interval(values: Sequence[float] | None) -> Interval | None:
    """Return a measured [low, high] as `Facts` hold it."""
    return (values[0], values[1]) if values else None


def exit_code(verdict: Status) -> int:
    """Return 0 for passed, 5 for failed, 6 for undecided."""
    return EXIT_CODES[verdict]


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
        return not_measured(what, untimed)
    met = value <= limit if at_most else value >= limit
    bound = "limit" if at_most else "minimum"
    return value, None, "passed" if met else "failed", f"{what} is {show(value)}; the {bound} is {show(limit)}."


def _timed(
    value: float | None, interval: Interval | None, limit: float, facts: Facts, what: str, unit: str, at_most: bool
) -> Judgement:
    """Judge a timing by its interval over rounds; if the interval is too wide, estimate how many runs are needed."""
    if value is None:
        return not_measured(what, facts.untimed)
    by_cpu = None if at_most else facts.cpu_ratios
    unfit = None if by_cpu else facts.unfit
    place = f" {facts.machine}" if facts.machine else ""
    bound = f"the {'limit' if at_most else 'minimum'} is {number_text(limit)}{unit}"
    if interval is None:
        why = "without rounds there is no interval to judge it by: raise validate.repeats"
        return value, None, "undecided", f"{what} is {number_text(value)}{unit} and {bound}, but {why}."
    verdict = verdict_of_interval(interval, limit, at_most=at_most)
    ends = f"[{number_text(interval[0])}, {number_text(interval[1])}]"
    how = f" by CPU time of one thread ({by_cpu})" if by_cpu else ""
    sentence = f"{what} is {number_text(value)}{unit} {ends}{place}{how}; {bound}"
    # A time that is too long and still meets its limit does meet it.
    if unfit and not (at_most and verdict == "passed"):
        # A quiet machine does not help against too many threads.
        cure = "" if "; lower " in unfit else ": measure again on a quiet machine"
        return value, interval, "undecided", f"{sentence}, but {unfit}{cure}."
    if verdict == "undecided":
        edge = interval[1] if value < limit else interval[0]
        needed = samples_needed(facts.timed_runs, value, edge, limit) if facts.timed_runs else None
        # A median outside its own bootstrap interval needs no more runs by the formula, but the verdict still does.
        more = (
            f"about {estimate_text(needed)} timed runs would settle it"
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
        return not_measured("The drop against the teacher")
    interval = (drop.low, drop.high)
    verdict = verdict_of_interval(interval, limit, at_most=True)
    side = "below" if drop.drop_points >= 0 else "above"
    seen = f"drop {drop.drop_points:.2f} [{drop.low:.2f}, {drop.high:.2f}]"
    sentence = f"Top-1 is {abs(drop.drop_points):.2f} points {side} the teacher's ({seen})"
    sentence += f"; the limit is {number_text(limit)} points"
    if drop.groups is not None:
        settled, more = judge_groups(drop.groups, verdict != "undecided", drop.drop_points, interval, limit)
        verdict = verdict if settled else "undecided"
        sentence += f", by a {TEST}{more}"
    elif verdict == "undecided":
        sentence += ". " + _images_needed(drop, limit)
    return drop.drop_points, interval, verdict, sentence + "."


def _images_needed(drop: PairedDrop, limit: float) -> str:
    """Describe what the test images can certify.

    Namely the smallest limit for a model without a drop, how many images this limit needs, and how many images would
    decide about the drop that was measured.
    """
    flips = drop.lost + drop.gained
    margin = certifiable_margin(drop.n, flips)
    sentence = f"Your {drop.n:,} test images can certify {margin:.1f} points"
    enough = images_for_margin(drop.n, flips, limit) if margin > limit else None
    if enough:
        sentence += f"; {estimate_text(enough)} are needed for {number_text(limit)}"
    needed = images_needed(drop, limit)
    if needed:
        return f"{sentence}; at the measured drop, about {estimate_text(needed)} would settle it"
    return f"{sentence}; the drop is so close to the limit that no number of images would settle it"


def _top1(facts: Facts, limit: float) -> Judgement:
    if facts.correct is None or not facts.images:
        return not_measured("Top-1")
    value, interval = facts.correct / facts.images, facts.top1_ci95 or wilson(facts.correct, facts.images)
    verdict = verdict_of_interval(interval, limit, at_most=False)
    sentence = f"Top-1 is {percent_text(value)} [{percent_text(interval[0])}, {percent_text(interval[1])}]"
    sentence += f"; the minimum is {percent_text(limit)}"
    if facts.groups is not None:
        settled, more = judge_groups(facts.groups, verdict != "undecided", value, interval, limit)
        verdict = verdict if settled else "undecided"
        sentence += f", by Wilson's interval on the effective number of images (Rao and Scott 1992){more}"
    elif verdict == "undecided":
        needed = images_needed_top1(facts.correct, facts.images, limit)
        more = (
            f"about {estimate_text(needed)} would settle it"
            if needed
            else "it is so close to the minimum that no number of images would settle it"
        )
        sentence += f". {facts.images:,} test images are too few to decide; {more}"
    return value, interval, verdict, sentence + "."


def _compression(facts: Facts, limit: float) -> Judgement:
    ratio = facts.teacher_bytes / facts.bytes if facts.teacher_bytes and facts.bytes else None
    return _exact(
        ratio, limit, "The teacher's size over the file's size", lambda x: f"{number_text(x)}x", at_most=False
    )


JUDGES: dict[str, Callable[[Facts, float], Judgement]] = {
    "max_top1_drop": _top1_drop,
    "min_top1": _top1,
    "min_recall": lambda f, limit: class_requirements.judge_recall(f.classes, limit),
    "min_balanced_accuracy": lambda f, limit: class_requirements.judge_mean(
        "Balanced accuracy", f.balanced_accuracy, f.balanced_accuracy_ci95, limit, f.images
    ),
    "min_macro_f1": lambda f, limit: class_requirements.judge_mean(
        "Macro-F1", f.macro_f1, f.macro_f1_ci95, limit, f.images
    ),
    "max_class_drop": lambda f, limit: class_requirements.judge_drop(f.classes, limit),
    "max_latency_ms": lambda f, limit: _timed(
        f.latency_ms, f.latency_ci95, limit, f, "The median latency of one image", " ms", True
    ),
    "min_speedup": lambda f, limit: _timed(
        f.speedup, f.speedup_ci95, limit, f, "The speed-up over the teacher", "x", False
    ),
    "min_int8_speedup": lambda f, limit: _timed(
        f.int8_speedup, f.int8_speedup_ci95, limit, f, "The speed-up of int8 over the float student", "x", False
    ),
    "max_bytes": lambda f, limit: _exact(f.bytes, limit, "The file's size", bytes_text, at_most=True),
    "min_compression": _compression,
    "max_memory_bytes": lambda f, limit: _exact(
        f.peak_memory_bytes, limit, "Peak memory", bytes_text, at_most=True, untimed=f.untimed
    ),
    "min_int8_mac_share": lambda f, limit: _exact(
        f.int8_mac_share, limit, "The integer share of the arithmetic", percent_text, at_most=False, untimed=f.untimed
    ),
}
