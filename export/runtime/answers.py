"""What each model of a bundle answered on a device, how much of it ran where, and how fast: one row a model.

Standard library, numpy and onnxruntime only; runs on Python 3.8.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from export.runtime import Model, latency_stats, runs_on
from export.runtime.latency_stats import LatencyResult
from export.runtime.provider import Placement

CONDITIONS = (
    "threads",
    "spinning",
    "governor",
    "cpu_features",
    "rounds",
    "attempts",
    "other_cores",
    "unfit",
)  # of a measurement, in each timed row


def _answers(model: Model, entry: dict[str, Any], samples: dict[str, np.ndarray]) -> dict[str, Any]:
    """Hold one model's logits on the bundle's pictures against the expected ones."""
    expected, labels = samples["logits/" + entry["file"]], samples["labels"]
    logits = model.run(samples["images"])
    same = logits.argmax(1) == expected.argmax(1)
    difference = float(np.abs(logits.astype(np.float64) - expected).max())
    count = len(labels)
    if entry["max_abs_diff"] is not None:
        right = difference <= entry["max_abs_diff"]
    else:  # one picture may always differ, or few samples would fail on a single tie
        right = bool(np.isfinite(logits).all()) and int((~same).sum()) <= max(
            1, int((1 - entry["min_agreement"]) * count)
        )
    return {
        "images": count,
        "top1": float((logits.argmax(1) == labels).mean()),
        "agreement": float(same.mean()),
        "max_abs_diff": difference if np.isfinite(difference) else None,
        "ok": right,
    }


def judge(
    models: dict[str, Model], entries: list[dict[str, Any]], samples: dict[str, np.ndarray], isa: str
) -> list[dict[str, Any]]:
    """Every model's answers against the expected ones; `ok` is None where it was built for another processor than `isa`."""
    rows = []
    for entry in entries:
        row = {key: entry[key] for key in ("file", "sha256", "role", "precision", "target")}
        row.update(_answers(models[entry["file"]], entry, samples), note=None)
        if not runs_on(entry["target"], isa):
            # Neither its speed nor its rounding here says anything about the device that it was built for.
            row.update(ok=None, note=f"built for {entry['target']}, this is {isa}")
        rows.append(row)
    return rows


def add_placement(row: dict[str, Any], found: Placement) -> None:
    """Write into a row what ran where."""
    row["provider"] = found.as_json()
    if found.nodes == 0 and row["ok"]:
        row.update(ok=False, note=found.sentence)


def add_latency(rows: list[dict[str, Any]], result: LatencyResult) -> None:
    """Write what was measured into the rows of the measured models."""
    known = result.conditions()
    for row in rows:
        name = row["file"]
        timed = result.models.get(name)
        if timed is not None:
            row["latency_ms"] = {**timed.summary(), "p50_ci95": list(latency_stats.p50_interval(result, name)[1:])}
            row.update(
                first_run_ms=timed.first_run_ms,
                load_ms=timed.load_ms,
                contaminated=result.contaminated,
                disturbances=list(result.disturbances),
            )
            row["speedup_over"] = {
                other: list(latency_stats.ratio(result, other, name)) for other in result.models if other != name
            }
            row["conditions"] = {
                **{key: known[key] for key in CONDITIONS},
                "drift": result.drift.get(name),
                "interrupted": result.interrupted.get(name),
            }


def fitting(rows: list[dict[str, Any]], isa: str) -> str | None:
    """The student's file for this machine: int8 before float, of several the one that was made for exactly this; None where there is none."""
    students = [row for row in rows if row["role"] == "student" and row["ok"] is not None]
    best = max(students, key=lambda row: (row["precision"] == "int8", row["target"] == isa), default=None)
    return best["file"] if best else None
