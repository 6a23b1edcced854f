"""Chooses the teacher among the candidates: by its own accuracy, or by short distillations of the student."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.core.plural import plural
from compress.core.records.training import Proxied, Trained
from compress.verdict.intervals import paired_drop


@dataclass(frozen=True)
class Behind:
    """How far a candidate's student is behind the best one on the same images: points with a 95 % interval."""

    points: float
    low: float
    high: float

    @property
    def shown(self) -> bool:
        """Whether the images show a difference: zero is not in the interval."""
        return self.low > 0

    def __str__(self) -> str:
        return f"{self.points:.2f} [{self.low:.2f}, {self.high:.2f}] points"


@dataclass(frozen=True)
class Selected:
    """The teacher, its place among the candidates and why it was chosen.

    `behind` has one entry for each candidate, None for the one with the best student.
    """

    teacher: Trained
    index: int
    reason: str
    proxies: tuple[Proxied, ...] = ()
    behind: tuple[Behind | None, ...] = ()


# What a metric is called in sentences.
METRICS = {"balanced_accuracy": "balanced accuracy on validation", "macro_f1": "macro-F1 on validation"}


def select(candidates: list[Trained], proxies: tuple[Proxied, ...] = (), metric: str | None = None) -> Selected:
    """Choose the best candidate, by `proxies` (one for each candidate) where there are any, else by its own accuracy.

    By proxy, all candidates whose student is not shown to be worse than the best one (paired on the validation images,
    95 %) count as equal, and the one with the fewest multiply-accumulates is chosen. By their own accuracy only exactly
    equal candidates count as equal.

    Args:
        candidates: in the recipe's order.
        proxies: one for each candidate, or none.
        metric: whose values are the candidates' scores; None: top-1.
    """
    if len(candidates) > 1 and proxies:
        return _by_proxy(candidates, proxies)
    reached = [one.top1_validation if one.score is None else one.score for one in candidates]
    index = min(range(len(candidates)), key=lambda i: (-reached[i], _cost(candidates[i])))
    best = candidates[index]
    if len(candidates) == 1:
        return Selected(best, index, f"{best.network.model} is the only candidate")
    other = max((i for i in range(len(candidates)) if i != index), key=lambda i: reached[i])
    second, lead = candidates[other], 100 * (reached[index] - reached[other])
    if lead == 0:
        where = f"in {METRICS[metric]}" if metric else "on validation"
        tie = f"{best.network.model} ties with {second.network.model} {where}"
        return Selected(best, index, f"{tie} and needs fewer multiply-accumulates")
    reason = (
        f"{best.network.model} has the best {METRICS[metric] if metric else 'validation accuracy'}: "
        f"{100 * reached[index]:.2f} %, "
        f"{lead:.2f} points ahead of {second.network.model} ({100 * reached[other]:.2f} %)"
    )
    return Selected(best, index, reason)


def _by_proxy(candidates: list[Trained], proxies: tuple[Proxied, ...]) -> Selected:
    places = range(len(candidates))
    best = min(
        places, key=lambda i: (-proxies[i].top1_validation, _cost(candidates[i]), -candidates[i].top1_validation)
    )
    right = [np.load(proxy.correct.path) for proxy in proxies]
    behind = tuple(None if i == best else _behind(right[best], right[i]) for i in places)
    equal = [i for i, gap in enumerate(behind) if gap is None or not gap.shown]
    index = min(
        equal, key=lambda i: (_cost(candidates[i]), -proxies[i].top1_validation, -candidates[i].top1_validation)
    )
    return Selected(candidates[index], index, _proxy_reason(candidates, proxies, behind, index, best), proxies, behind)


def _behind(best: NDArray[np.bool_], other: NDArray[np.bool_]) -> Behind:
    """Compare two students, bool (V,) each, on the same images."""
    drop = paired_drop(best, other)
    return Behind(drop.drop_points, drop.low, drop.high)


def _cost(one: Trained) -> float:
    """Return the multiply-accumulates; a file that does not show them counts as the largest."""
    return float("inf") if one.macs is None else one.macs


def _proxy_reason(
    candidates: list[Trained], proxies: tuple[Proxied, ...], behind: tuple[Behind | None, ...], index: int, best: int
) -> str:
    """Describe which candidate makes the best student, by how much, and how it compares with the strongest teacher."""
    names = [one.network.model for one in candidates]
    one = proxies[best]
    reached = f"the student reaches {100 * one.top1_validation:.2f} % on {one.images:,} validation images"
    spent = f"{plural(one.epochs, 'epoch')} on {100 * one.share:g} % of the images"
    second = max((i for i in range(len(proxies)) if i != best), key=lambda i: (i == index, proxies[i].top1_validation))
    ahead = f"{reached} after {spent} with {names[best]}, {behind[second]} more than with {names[second]}"
    gap = behind[second]
    if gap is not None and not gap.shown:
        other = candidates[second if index == best else best]
        equal = _cost(candidates[index]) == _cost(other)
        cheaper = "is as large" if equal else "needs fewer multiply-accumulates"
        more = "more validation images or longer proxies may show one"
        return f"{ahead}: no difference shown, and {names[index]} {cheaper}; {more}"
    strongest = max(range(len(candidates)), key=lambda i: candidates[i].top1_validation)
    if candidates[strongest].top1_validation == candidates[index].top1_validation:
        return f"{ahead}; {names[index]} is the strongest by itself too"
    own = f"{100 * candidates[strongest].top1_validation:.2f} %"
    return f"{ahead}, although {names[strongest]} is stronger by itself ({own})"


def rows(candidates: list[Trained], selected: Selected) -> list[dict[str, Any]]:
    """Return the table of candidates for report.json, with both rankings (1 is best)."""
    own = ranks([one.top1_validation for one in candidates])
    proxy = ranks([one.top1_validation for one in selected.proxies])
    gaps: tuple[Any, ...] = selected.behind or (None,) * len(candidates)
    return [
        {
            "model": one.network.model,
            "width": one.network.width,
            "top1_validation": one.top1_validation,
            "score": one.score,
            "probe_top1_validation": one.checks.probe_top1 if one.checks else None,
            "rank": own[index],
            "proxy_top1_validation": selected.proxies[index].top1_validation if proxy else None,
            "proxy_rank": proxy[index] if proxy else None,
            "proxy_behind_points": gaps[index].points if gaps[index] else None,
            "proxy_behind_ci95": [gaps[index].low, gaps[index].high] if gaps[index] else None,
            "params": one.params,
            "macs": one.macs,
            "seconds": one.seconds,
            "epochs": one.epochs,
            "origin": one.origin,
            "gpu": one.gpu,
            "kernels": one.kernels,
            "chosen": index == selected.index,
        }
        for index, one in enumerate(candidates)
    ]


def ranks(values: list[float]) -> list[int]:
    """Return the rank of each value, 1 for the highest; equal values have equal ranks."""
    return [1 + sum(other > value for other in values) for value in values]


def proxy_line(row: dict[str, Any]) -> str:
    """Format a row of the table for the console, where candidates were compared by proxy."""
    own = f"{100 * row['top1_validation']:.2f} % by itself (rank {row['rank']})"
    student = f"{100 * row['proxy_top1_validation']:.2f} % with it"
    return f"teacher {row['model']}: {own}, the student {student} (rank {row['proxy_rank']}{behind_best(row, ', ')})"


def behind_best(row: dict[str, Any], before: str = "") -> str:
    """Return how far the row's student is behind the best one, after the text `before`; "" for the best one."""
    if row["proxy_behind_ci95"] is None:
        return ""
    gap = Behind(row["proxy_behind_points"], *row["proxy_behind_ci95"])
    return f"{before}{gap} behind the best{'' if gap.shown else ': no difference shown'}"
