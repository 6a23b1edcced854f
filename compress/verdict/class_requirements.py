"""Judges the limits on single classes, and on the metrics that count every class alike.

A limit on all classes passes if the interval of every class passes. It fails if a class fails after Holm's correction
for the number of classes: of many classes one misses any limit by chance. Otherwise it is undecided.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from compress.verdict.intervals import drop_from_counts, drop_score, holm, wilson
from compress.verdict.judgement import Interval, Judgement, Verdict, not_measured, verdict_of_interval
from compress.verdict.number_text import estimate_text, number_text, percent_text, points_text
from compress.verdict.sample_size import images_needed, images_needed_top1, samples_needed

# One side of a 95 % interval.
LEVEL = 0.025
# Classes that a sentence names.
NAMED = 5


@dataclass(frozen=True)
class ClassCounts:
    """Test images of one class: all, those that the file gets right, and its flips against the teacher."""

    name: str
    n: int
    right: int
    lost: int
    gained: int


@dataclass(frozen=True)
class _Judged:
    """One class against the limit. `needed`: images that would settle it; None: no number would."""

    counts: ClassCounts
    value: float
    interval: Interval
    verdict: Verdict
    p: float
    needed: int | None


def same_name(one: str, other: str) -> bool:
    """Return whether two class names are equal in the form in which people see them (NFC)."""
    return unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other)


def judge_recall_of(name: str, classes: Sequence[ClassCounts], limit: float) -> Judgement:
    """Judge the recall of one class by Wilson's interval."""
    counts = next((one for one in classes if same_name(one.name, name)), None)
    if counts is None or not counts.n:
        return not_measured(f"The recall of {name}", "it has no test image" if counts else None)
    judged = _recall(counts, limit)
    sentence = f"The recall of {name} is {_recall_text(judged)}; the minimum is {percent_text(limit)}"
    if judged.verdict == "undecided":
        sentence += f". {_too_few([judged])}"
    return judged.value, judged.interval, judged.verdict, sentence + "."


def judge_recall(classes: Sequence[ClassCounts], limit: float) -> Judgement:
    """Judge the recall of every class; the value is the lowest one."""
    return _every_class(
        classes,
        lambda counts: _recall(counts, limit),
        what="recall",
        bound=f"the minimum is {percent_text(limit)}",
        show=_recall_text,
        worst=min,
    )


def judge_drop(classes: Sequence[ClassCounts], limit: float) -> Judgement:
    """Judge the drop of every class against the teacher, in points; the value is the largest one."""
    return _every_class(
        classes,
        lambda counts: _drop(counts, limit),
        what="drop",
        bound=f"the limit is {number_text(limit)} points",
        show=_drop_text,
        worst=max,
    )


def judge_mean(
    what: str, value: float | None, interval: Interval | None, limit: float, images: int | None
) -> Judgement:
    """Judge balanced accuracy or macro-F1 by its interval."""
    if value is None or interval is None:
        return not_measured(what)
    verdict = verdict_of_interval(interval, limit, at_most=False)
    ends = f"[{percent_text(interval[0])}, {percent_text(interval[1])}]"
    sentence = f"{what} is {percent_text(value)} {ends}; the minimum is {percent_text(limit)}"
    if verdict == "undecided" and images:
        edge = interval[0] if value > limit else interval[1]
        needed = samples_needed(images, value, edge, limit)
        more = (
            f"about {estimate_text(max(needed, images + 1))}, as many times more of each class, would settle it"
            if needed
            else "it is so close to the minimum that no number of images would settle it"
        )
        sentence += f". {images:,} test images are too few to decide; {more}"
    return value, interval, verdict, sentence + "."


def _every_class(
    classes: Sequence[ClassCounts],
    judge: Callable[[ClassCounts], _Judged],
    *,
    what: str,
    bound: str,
    show: Callable[[_Judged], str],
    worst: Callable[..., _Judged],
) -> Judgement:
    """Judge a limit on all classes together."""
    judged = [judge(counts) for counts in classes if counts.n]
    if not judged:
        return not_measured(f"The {what} of each class")
    adjusted = holm(np.array([one.p for one in judged]))
    failed = [one for one, p in zip(judged, adjusted, strict=True) if p < LEVEL]
    extreme = worst(judged, key=lambda one: one.value)
    side = "lowest recall" if what == "recall" else "largest drop"
    sentence = f"The {side} of {len(judged)} classes is that of {extreme.counts.name}, {show(extreme)}; {bound}"
    absent = [counts.name for counts in classes if not counts.n]
    open_ones = [one for one in judged if one.verdict != "passed" and one not in failed]
    verdict: Verdict = "failed" if failed else "undecided" if open_ones or absent else "passed"
    if failed:
        sentence += f". Not met, also after Holm's correction: {_listed(one.counts.name for one in failed)}"
    if verdict == "undecided" and open_ones:
        sentence += f". {_too_few(open_ones)}"
    if absent:
        sentence += f". No test image: {_listed(absent)}"
    return extreme.value, extreme.interval, verdict, sentence + "."


def _recall(counts: ClassCounts, limit: float) -> _Judged:
    interval = wilson(counts.right, counts.n)
    verdict = verdict_of_interval(interval, limit, at_most=False)
    needed = images_needed_top1(counts.right, counts.n, limit) if verdict != "passed" else None
    p = binomial_at_most(counts.right, counts.n, limit)
    return _Judged(counts, counts.right / counts.n, interval, verdict, p, needed)


def _drop(counts: ClassCounts, limit: float) -> _Judged:
    drop = drop_from_counts(counts.lost, counts.gained, counts.n)
    verdict = verdict_of_interval((drop.low, drop.high), limit, at_most=True)
    needed = images_needed(drop, limit) if verdict != "passed" else None
    p = 1 - NormalDist().cdf(drop_score(counts.lost, counts.gained, counts.n, limit / 100))
    return _Judged(counts, drop.drop_points, (drop.low, drop.high), verdict, p, needed)


def binomial_at_most(k: int, n: int, share: float) -> float:
    """Return P(X <= k) for X ~ Binomial(n, share), the exact one-sided p of "the recall is at least `share`"."""
    if share >= 1:
        return 1.0 if k >= n else 0.0
    logs = (
        math.lgamma(n + 1)
        - math.lgamma(i + 1)
        - math.lgamma(n - i + 1)
        + i * math.log(share)
        + (n - i) * math.log1p(-share)
        for i in range(k + 1)
    )
    return min(1.0, math.fsum(math.exp(value) for value in logs))


def _recall_text(one: _Judged) -> str:
    ends = f"[{percent_text(one.interval[0])}, {percent_text(one.interval[1])}]"
    return f"{percent_text(one.value)} {ends} ({one.counts.right} of {one.counts.n})"


def _drop_text(one: _Judged) -> str:
    ends = f"[{points_text(one.interval[0])}, {points_text(one.interval[1])}]"
    return f"{points_text(one.value)} {ends} points on {one.counts.n} images"


def _too_few(judged: Sequence[_Judged]) -> str:
    """Return how many test images of which class would settle the limit, the largest need first."""
    ordered = sorted(judged, key=lambda one: -(one.needed or math.inf))
    parts = [
        f"{one.counts.name} needs about {estimate_text(max(one.needed, one.counts.n + 1))} instead of {one.counts.n}"
        if one.needed
        else f"{one.counts.name} is so close to the limit that no number would do"
        for one in ordered[:NAMED]
    ]
    more = f", and {len(ordered) - NAMED} more" if len(ordered) > NAMED else ""
    return f"Too few test images to decide: {', '.join(parts)}{more}"


def _listed(names: Iterable[str]) -> str:
    """Join names; the first NAMED are shown, the others counted."""
    found = list(names)
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return ", ".join(found[:NAMED]) + more
