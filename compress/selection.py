"""Which candidate teaches, and why: by its own accuracy, or by what short distillations made of the student."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compress.results import Proxied, Trained


@dataclass(frozen=True)
class Selected:
    """The teacher, its place among the candidates and why it won."""

    teacher: Trained
    index: int
    reason: str
    proxies: tuple[Proxied, ...] = ()


def select(candidates: list[Trained], proxies: tuple[Proxied, ...] = ()) -> Selected:
    """The best candidate: by what `proxies`, one a candidate, made of the student where there are any, else by its own accuracy.

    Equal ones by their own accuracy on validation, then by fewer multiply-accumulates.
    """
    index = min(range(len(candidates)), key=lambda i: (-(proxies[i].top1_validation if proxies else 0), -candidates[i].top1_validation, _cost(candidates[i])))
    best = candidates[index]
    if len(candidates) == 1:
        return Selected(best, index, f"{best.network.model} is the only candidate")
    if proxies:
        return Selected(best, index, _proxy_reason(candidates, proxies, index), proxies)
    second = max((c for i, c in enumerate(candidates) if i != index), key=lambda c: c.top1_validation)
    lead = 100 * (best.top1_validation - second.top1_validation)
    if lead == 0:
        return Selected(best, index, f"{best.network.model} ties with {second.network.model} on validation and needs fewer multiply-accumulates")
    return Selected(
        best,
        index,
        f"{best.network.model} has the best validation accuracy: {100 * best.top1_validation:.2f} %, "
        f"{lead:.2f} points ahead of {second.network.model} ({100 * second.top1_validation:.2f} %)",
    )


def _cost(one: Trained) -> float:
    """Multiply-accumulates; a file that does not show them counts as the largest."""
    return float("inf") if one.macs is None else one.macs


def _proxy_reason(candidates: list[Trained], proxies: tuple[Proxied, ...], index: int) -> str:
    """Who made the best student, by how much, and whether the strongest teacher is another one."""
    names = [one.network.model for one in candidates]
    second = max((i for i in range(len(proxies)) if i != index), key=lambda i: proxies[i].top1_validation)
    one, lead = proxies[index], 100 * (proxies[index].top1_validation - proxies[second].top1_validation)
    strongest = max(range(len(candidates)), key=lambda i: candidates[i].top1_validation)
    told = f"the student reaches {100 * one.top1_validation:.2f} % on {one.pictures:,} validation pictures after {one.epochs} epochs on {100 * one.share:g} %"
    ahead = f"{told} of the pictures with {names[index]}, {lead:.2f} points more than with {names[second]}"
    if candidates[strongest].top1_validation == candidates[index].top1_validation:
        return f"{ahead}; {names[index]} is the strongest by itself too"
    return f"{ahead}, although {names[strongest]} is stronger by itself ({100 * candidates[strongest].top1_validation:.2f} %)"


def rows(candidates: list[Trained], selected: Selected) -> list[dict[str, Any]]:
    """The table of candidates: report.json's, with both rankings (1 is best)."""
    own = ranks([one.top1_validation for one in candidates])
    proxy = ranks([one.top1_validation for one in selected.proxies])
    return [
        {
            "model": one.network.model,
            "width": one.network.width,
            "top1_validation": one.top1_validation,
            "rank": own[index],
            "proxy_top1_validation": selected.proxies[index].top1_validation if proxy else None,
            "proxy_rank": proxy[index] if proxy else None,
            "params": one.params,
            "macs": one.macs,
            "seconds": one.seconds,
            "epochs": one.epochs,
            "origin": one.origin,
            "chosen": index == selected.index,
        }
        for index, one in enumerate(candidates)
    ]


def ranks(values: list[float]) -> list[int]:
    """Of each value, 1 for the highest; equal values have equal ranks."""
    return [1 + sum(other > value for other in values) for value in values]


def proxy_line(row: dict[str, Any]) -> str:
    """A row of the table where candidates were compared by proxy, for the console."""
    return (
        f"teacher {row['model']}: {100 * row['top1_validation']:.2f} % by itself (rank {row['rank']}), "
        f"the student {100 * row['proxy_top1_validation']:.2f} % with it (rank {row['proxy_rank']})"
    )
