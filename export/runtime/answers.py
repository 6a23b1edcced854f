"""One row a model of a bundle: its answers on a device, where its nodes ran, and how fast.

Standard library, numpy and onnxruntime only; runs on Python 3.8.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from export.runtime import Model, latency_stats, runs_on
from export.runtime.latency_stats import LatencyResult
from export.runtime.provider import Placement

# Conditions of the measurement that each timed row repeats.
CONDITIONS = (
    "threads",
    "spinning",
    "governor",
    "cpu_features",
    "rounds",
    "attempts",
    "other_cores",
    "unfit",
    "cpu_ratios",
)
# A remark about a bundle whose images are drawn.
SYNTHETIC = "The bundle's images are synthetic: answers are checked by them, accuracy is not measured."
# What a row holds before anything is timed.
UNTIMED: dict[str, Any] = {"latency_ms": None, "first_run_ms": None, "load_ms": None, "peak_memory_bytes": None}


def _answers(model: Model, entry: dict[str, Any], samples: dict[str, np.ndarray]) -> dict[str, Any]:
    """Compare one model's logits on the bundle's images with the expected ones."""
    expected, labels = samples["logits/" + entry["file"]], samples.get("labels")
    logits = model.run(samples["images"])
    same = logits.argmax(1) == expected.argmax(1)
    difference = float(np.abs(logits.astype(np.float64) - expected).max())
    count = len(expected)
    if entry["max_abs_diff"] is not None:
        right = difference <= entry["max_abs_diff"]
    else:
        # One image may always differ, or few samples would fail on a single tie.
        allowed = max(1, int((1 - entry["min_agreement"]) * count))
        right = bool(np.isfinite(logits).all()) and int((~same).sum()) <= allowed
    return {
        "images": count,
        # Synthetic images have no right class.
        "top1": None if labels is None else float((logits.argmax(1) == labels).mean()),
        "agreement": float(same.mean()),
        "max_abs_diff": difference if np.isfinite(difference) else None,
        "ok": right,
    }


def remarks(manifest: dict[str, Any]) -> list[str]:
    """Return what must be known of a bundle's images to read an answer."""
    return [SYNTHETIC] if manifest["samples"].get("synthetic") else []


def judge(
    models: dict[str, Model], entries: list[dict[str, Any]], samples: dict[str, np.ndarray], isa: str
) -> list[dict[str, Any]]:
    """Compare every model's answers with the expected ones.

    Args:
        models: loaded models by file name.
        entries: the models' entries in the manifest.
        samples: arrays of samples.npz: `images`, `labels` (none of synthetic images), and `logits/<file>` for each
            model.
        isa: instruction set of the device.

    Returns:
        One row a model; its `ok` is None if it was built for another processor than `isa`.
    """
    rows = []
    for entry in entries:
        row = {key: entry[key] for key in ("file", "sha256", "role", "precision", "target")}
        row.update(_answers(models[entry["file"]], entry, samples), note=None)
        if not runs_on(entry["target"], isa):
            # Its speed and its rounding here do not carry over to the device that it was built for.
            row.update(ok=None, note=f"built for {entry['target']}, this is {isa}")
        rows.append(row)
    return rows


def add_photos(rows: list[dict[str, Any]], decoded: dict[str, dict[str, float]]) -> None:
    """Write into each row how its model answers on the decoded photos, and that nothing is timed yet."""
    for row in rows:
        row.update({**UNTIMED, "speedup_over": {}, "photos": decoded.get(row["file"]), "provider": None})


def add_placement(row: dict[str, Any], found: Placement) -> None:
    """Write into a row where its nodes ran."""
    row["provider"] = found.as_json()
    if found.nodes == 0 and row["ok"]:
        row.update(ok=False, note=found.sentence)


def add_latency(rows: list[dict[str, Any]], result: LatencyResult) -> None:
    """Write the measurements into the rows of the measured models."""
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
                other: list(latency_stats.speedup_with_interval(result, other, name))
                for other in result.models
                if other != name
            }
            row["conditions"] = {
                **{key: known[key] for key in CONDITIONS},
                "drift": result.drift.get(name),
                "interrupted": result.interrupted.get(name),
            }


def fitting(rows: list[dict[str, Any]], isa: str) -> str | None:
    """Return the student's file for this machine, or None.

    int8 comes before float, and among int8 files the one made for exactly this `isa`.
    """
    students = [row for row in rows if row["role"] == "student" and row["ok"] is not None]
    best = max(students, key=lambda row: (row["precision"] == "int8", row["target"] == isa), default=None)
    return best["file"] if best else None


def all_right(rows: list[dict[str, Any]], photos: dict[str, Any]) -> bool:
    """Return whether the models meant for this machine are right, at least one is, and no photo is wrong."""
    judged = [row["ok"] for row in rows if row["ok"] is not None]
    return bool(judged) and all(judged) and photos["ok"] is not False
