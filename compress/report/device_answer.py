"""A device's answer merged into report.json: its rows, and the requirements that its time and memory decide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from compress.recipe.schema import Require
from compress.verdict import requirements as verdict
from compress.verdict.device_requirements import LIMITS, unfit_reason

Row = dict[str, Any]


def merge(
    content: Row,
    require: Require,
    rows: tuple[Row, ...],
    target: str,
    *,
    where: Mapping[str, str] | None = None,
    failure: str | None = None,
) -> Row:
    """report.json's content with a device's rows in place of its earlier ones, and its requirements judged again.

    A limit that this machine could not judge, where the recipe names no other device, is this one's; every other row stays as it is.
    `failure`: why the device that the recipe names gave no answer, or what was wrong with it; its limits are then not judged.
    """
    old = [verdict.Requirement(**row) for row in content["requirements"]]
    places = {row.name: row.where for row in old} | dict(where or {})
    chosen = {name: limit for name, limit in require.model_dump().items() if name in LIMITS}
    new = {row.name: row for row in verdict.judge(Require(**chosen), facts(content, rows, target), places)}
    requirements = [row for row in old if row.name not in new or _stays(row, target, new[row.name])]
    requirements += new.values()
    order = list(Require.model_fields)
    requirements.sort(key=lambda row: (order.index(row.name), row.target != "local", row.target))
    device = [row for row in content["device"] if row["target"] != target] + list(rows)
    named = content.get("named_device")
    if named and named["target"] == target:
        content = {**content, "named_device": {"target": target, "failure": failure}}
        content |= {"int8_against_float": _int8(content, rows, target)}
    return {
        **content,
        "device": device,
        "requirements": [asdict(row) for row in requirements],
        "status": verdict.status(requirements),
    }


def _stays(row: verdict.Requirement, target: str, new: verdict.Requirement) -> bool:
    """Whether an earlier row of a limit is kept beside the new one of `target`."""
    if row.target == target:
        return False
    return row.target != "local" or row.verdict != "not judged" or new.verdict == "not judged"


def facts(content: Row, rows: tuple[Row, ...], target: str) -> verdict.Facts:
    """Time and memory of the file that ships to this device: the student of the shipped precision that is built for it."""
    row, untimed = _shipped(content, rows, target)
    latency = row["latency_ms"] or {}
    teacher = next((other["file"] for other in rows if other["role"] == "teacher"), None)
    ratio = row["speedup_over"].get(teacher)
    integers = _int8(content, rows, target)
    return verdict.Facts(
        file=row["file"],
        target=target,
        latency_ms=latency.get("p50"),
        latency_ci95=verdict.interval(latency.get("p50_ci95")),
        timed_runs=latency.get("runs"),
        speedup=ratio[0] if ratio else None,
        speedup_ci95=verdict.interval(ratio[1:] if ratio else None),
        int8_speedup=integers["speedup"] if integers else None,
        int8_speedup_ci95=verdict.interval(integers["ci95"] if integers else None),
        peak_memory_bytes=row["peak_memory_bytes"],
        disturbed="; ".join(row.get("disturbances") or ())
        or ("other processes were busy on the device" if row["contaminated"] else None),
        unfit=unfit_reason(row),
        sha256=row["sha256"],
        precision=row["precision"],
        untimed=untimed,
    )


def _shipped(content: Row, rows: tuple[Row, ...], target: str) -> tuple[Row, str | None]:
    """The device's row of the file that ships there, and why it has no time. Without an answer a row without numbers."""
    ships = (content.get("ships") or {}).get("file")
    precision = (
        "int8" if any(row["role"] == "student" and row["precision"] == "int8" for row in content["models"]) else "fp32"
    )
    precision = next((row["precision"] for row in content["models"] if row["file"] == ships), precision)
    if not rows:
        models = [row for row in content["models"] if row["role"] == "student" and row["precision"] == precision]
        known = next((row for row in models if row["file"] == ships), models[0])
        nothing: Row = {"latency_ms": None, "speedup_over": {}, "peak_memory_bytes": None, "contaminated": None}
        return {
            **nothing,
            **{key: known.get(key) for key in ("file", "sha256", "precision")},
        }, f"{target} gave no answer"
    students = [row for row in rows if row["role"] == "student" and row["precision"] == precision]
    right = [row for row in students if row["ok"] is not None]
    right.sort(key=lambda row: row["built_for"] != row["isa"])
    row = (right or students or list(rows))[0]
    if not right:
        return row, f"the bundle's int8 file is built for {row['built_for']} and {target} is {row['isa']}"
    if row["not_timed"]:
        return row, f"{target} was not timed ({row['not_timed']})"
    return row, None if row["ok"] else f"its answers on {target} are wrong"


def _int8(content: Row, rows: tuple[Row, ...], target: str) -> Row | None:
    """What integer arithmetic is worth on the device; None where it gave no two times."""
    floats = next((row["file"] for row in rows if row["role"] == "student" and row["precision"] == "fp32"), None)
    timed = [
        row for row in rows if row["role"] == "student" and row["precision"] == "int8" and floats in row["speedup_over"]
    ]
    if not timed:
        return None
    row = min(timed, key=lambda row: row["built_for"] != row["isa"])
    speedup, low, high = row["speedup_over"][floats]
    pair: Row = next(
        (one for one in content.get("comparisons") or () if (one["model"], one["against"]) == (row["file"], floats)), {}
    )
    return {
        "speedup": speedup,
        "ci95": [low, high],
        "top1_drop_points": pair.get("top1_drop_points"),
        "top1_drop_ci95": pair.get("top1_drop_ci95"),
        "target": target,
        "sentence": verdict.int8_against_float(speedup, (low, high), f"on {target}", unfit_reason(row)),
    }
