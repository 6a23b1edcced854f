"""Judge the limits that need no training, on a plan's rows of plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compress.pipeline.plan import candidates
from compress.recipe.schema import Device, Recipe
from compress.verdict import requirements as verdict
from compress.verdict.facts import Facts

JUDGED = (
    "max_latency_ms",
    "min_speedup",
    "min_int8_speedup",
    "max_bytes",
    "min_compression",
    "max_memory_bytes",
    "min_int8_mac_share",
)

Row = dict[str, Any]


def judged(recipe: Recipe, base: Path) -> tuple[str, ...]:
    """Return the limits that a plan can judge; none against the teacher if an ONNX teacher is missing."""
    missing = candidates.unmeasured(recipe, base)
    return tuple(name for name in JUDGED if not (missing and name in ("min_speedup", "min_compression")))


def judge(recipe: Recipe, base: Path, where: Mapping[str, str], row: Row, rows: list[Row]) -> Row:
    """Judge the recipe's limits on one network of a plan.

    The teacher is not chosen yet, so a limit against it must hold for every candidate.

    Args:
        recipe: The recipe.
        base: Where its relative paths begin.
        where: Requirement -> path:line:column.
        row: The network's row.
        rows: The rows of the networks so far, the teachers' among them.
    """
    limits = recipe.require.model_dump()
    require = recipe.require.model_copy(update={name: None for name in limits if name not in judged(recipe, base)})
    teachers: list[Row | None] = [one for one in rows if one["role"] == "teacher"] or [None]
    by_teacher = [
        (
            teacher["name"] if teacher else "",
            [asdict(one) for one in verdict.judge(require, _facts(row, teacher, recipe.device), where)],
        )
        for teacher in teachers
    ]
    requirements = [
        agreed([(name, judged[index]) for name, judged in by_teacher]) for index in range(len(by_teacher[0][1]))
    ]
    return {"requirements": requirements, "status": status(requirements)}


def status(requirements: list[Row]) -> verdict.Status:
    """Return the status of judged limits: failed beats undecided, and no limit at all is passed."""
    return verdict.status(verdict.Requirement(**row) for row in requirements)


def _facts(row: Row, teacher: Row | None, device: Device) -> Facts:
    """Return what was measured on the recipe's device."""
    own = row[row["ships"]]
    latency = own["latency_ms"] or {}
    against = (
        None
        if teacher is None
        else next((pair for pair in row["speedups"] if pair["against"] == teacher["name"]), None)
    )
    return Facts(
        file=f"{row['name']} {row['ships']}",
        target=device.name,
        latency_ms=latency.get("p50"),
        latency_ci95=verdict.as_interval(latency.get("p50_ci95")),
        timed_runs=latency.get("runs"),
        speedup=against["speedup"] if against else None,
        speedup_ci95=verdict.as_interval(against["ci95"]) if against else None,
        int8_speedup=row["int8_speedup"],
        int8_speedup_ci95=verdict.as_interval(row["int8_speedup_ci95"]),
        bytes=own["bytes"],
        teacher_bytes=teacher["fp32"]["bytes"] if teacher else None,
        peak_memory_bytes=own["peak_memory_bytes"],
        int8_mac_share=row["int8"]["int8_mac_share"] if row["ships"] == "int8" else 0.0,
        disturbed="; ".join(row["disturbances"]) or None,
        unfit=row["unfit"],
        sha256=own["sha256"],
        precision=row["ships"],
    )


def agreed(by_teacher: list[tuple[str, Row]]) -> Row:
    """Return one verdict on a limit: that of all candidates, from the one hardest to meet; else undecided."""
    hardest = min(by_teacher, key=lambda pair: (pair[1]["value"] is not None, pair[1]["value"]))
    relative = hardest[1]["name"] in ("min_speedup", "min_compression") and len(by_teacher) > 1
    if not relative:
        return by_teacher[0][1]
    if len({row["verdict"] for _, row in by_teacher}) == 1:
        return {**hardest[1], "sentence": f"Against {hardest[0]}: {hardest[1]['sentence']}"}
    parts = "; ".join(
        f"{row['verdict']} against {name} ({row['value']:.3g}x)" if row["value"] else row["verdict"]
        for name, row in by_teacher
    )
    return {
        **hardest[1],
        "verdict": "undecided",
        "sentence": f"It depends on which teacher is chosen: {parts}; the minimum is {hardest[1]['limit']:g}x.",
    }
