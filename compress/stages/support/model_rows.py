"""Rows of report.json for validated files, and the arrays from which anyone can compute them again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

import export.graph.executed
import export.runtime.latency
import export.runtime.latency_stats
from compress.core.records.deployment import ModelFile
from compress.recipe.schema import Validate
from compress.stages.support import latency
from compress.verdict import clusters, diagnosis, intervals
from compress.verdict.class_metrics import class_metrics
from export.runtime import isa, saturates
from export.runtime.latency_stats import LatencyResult

Groups = NDArray[np.int64]
Logits = Mapping[str, NDArray[np.floating[Any]]]  # by file name: (N, K)


def model_row(
    model: ModelFile,
    logits: Logits,
    labels: NDArray[np.integer[Any]],
    teacher: str,
    times: LatencyResult,
    config: Validate,
    groups: Groups | None = None,
) -> dict[str, Any]:
    """Return report.json's row of a file. A file for another instruction set is neither timed nor audited here.

    Args:
        model: The file.
        logits: Of every file, on the test images.
        labels: Of the test images, (N,).
        teacher: The teacher's file name.
        times: Latencies of the files that this machine can run.
        config: The recipe's `validate` section.
        groups: Group of each test image, numbers from 0, (N,); None: the images are independent.
    """
    timed = times.models.get(model.name)
    own = logits[model.name]
    right = own.argmax(axis=1) == labels
    correct = int(right.sum())
    foreign = model.contract is not None  # another project's nodes may have no names, and its weights may be computed
    audit = export.graph.executed.audit(model.file.path, threads=config.threads) if timed and not foreign else None
    int8_audit = audit if model.precision == "int8" else None
    by = "as it is written" if saturates(model.target, isa()) else "by this machine's kernels"
    if groups is None:
        interval, grouped = intervals.wilson(correct, len(labels)), {}
    else:
        interval = clusters.accuracy_interval(right, groups)
        effect = clusters.design_effect(right, groups) if groups.any() else None
        grouped = {"groups": int(groups.max()) + 1, "design_effect": effect}
    return {
        "role": "student" if model.role == "static" else model.role,
        "variant": "static" if model.role == "static" else None,
        "precision": model.precision,
        "file": model.name,
        "sha256": model.file.sha256,
        "bytes": model.file.bytes,
        "images": len(labels),
        "top1": correct / len(labels),
        "top1_ci95": list(interval),
        **grouped,
        "top5": float(intervals.top_k_correct(own, labels, 5).mean()) if own.shape[1] >= 5 else None,
        **class_metrics(labels, own.argmax(axis=1), own.shape[1], config.seed).row(),
        "agreement_with_teacher": float((own.argmax(axis=1) == logits[teacher].argmax(axis=1)).mean()),
        "max_abs_diff_from_torch": model.max_abs_diff_from_torch,
        "latency_ms": latency.entry(times, model.name, config.seed),
        "first_run_ms": timed.first_run_ms if timed else None,
        "load_ms": timed.load_ms if timed else None,
        "peak_memory_bytes": export.runtime.latency.memory(model.file.path, threads=config.threads) if timed else None,
        "int8_mac_share": audit.int8_mac_share if audit else None,
        "islands": [f"{name} ({op})" for name, op in int8_audit.islands] if int8_audit else None,
        "island_causes": int8_audit.causes_counted() if int8_audit else None,
        "requantised": list(int8_audit.requantised) if int8_audit else None,
        "target": model.target,
        "note": None if timed else f"built for {model.target}, this machine is {isa()}: answers {by}, not timed",
    }


def comparison_row(
    model: ModelFile,
    against: ModelFile,
    logits: Logits,
    labels: NDArray[np.integer[Any]],
    times: LatencyResult,
    seed: int,
    groups: Groups | None = None,
) -> dict[str, Any]:
    """Return report.json's paired comparison of two files on the same images.

    Args:
        model: The file.
        against: The file that it is compared with.
        logits: Of every file, on the test images.
        labels: Of the test images, (N,).
        times: Latencies of the files that this machine can run.
        seed: Of the bootstrap.
        groups: Group of each test image, numbers from 0, (N,); None: the images are independent.
    """
    right = {name: logits[name].argmax(axis=1) == labels for name in (model.name, against.name)}
    plain = intervals.paired_drop(right[against.name], right[model.name])
    drop = plain if groups is None else clusters.paired_drop(right[against.name], right[model.name], groups)
    both = model.name in times.models and against.name in times.models
    speedup, low, high = (
        export.runtime.latency_stats.speedup_with_interval(times, against.name, model.name, seed=seed)
        if both
        else (None, None, None)
    )
    return {
        "model": model.name,
        "against": against.name,
        "top1_drop_points": drop.drop_points,
        "top1_drop_ci95": [drop.low, drop.high],
        "mcnemar_p": plain.p,
        **({} if groups is None else {"groups": drop.groups, "p": drop.p, "test": clusters.TEST}),
        "images": drop.n,
        "lost": drop.lost,
        "gained": drop.gained,
        "speedup_p50": speedup,
        "speedup_ci95": [low, high] if both else None,
        "size_ratio": against.file.bytes / model.file.bytes,
    }


def int8_warnings(models: tuple[ModelFile, ...], comparisons: tuple[dict[str, Any], ...]) -> tuple[str, ...]:
    """Name known causes where the student's int8 file is worse than its float file beyond chance."""
    files = {model.name: model for model in models if model.role == "student"}
    pairs = [
        row for row in comparisons if row["model"] in files and row["against"] in files and row["top1_drop_ci95"][0] > 0
    ]
    named = ((row, diagnosis.name_int8_fault(files[row["model"]].file.path)) for row in pairs)
    return tuple(
        f"{row['model']} is {row['top1_drop_points']:.1f} points below {row['against']}: {fault}"
        for row, fault in named
        if fault
    )


def prediction_arrays(
    images: NDArray[np.uint8], labels: NDArray[np.integer[Any]], logits: Logits
) -> dict[str, NDArray[Any]]:
    """Return each test image's content hash, label and logits, from which every interval can be computed again."""
    hashes = np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in images])
    floats = {f"logits/{name}": value.astype(np.float32) for name, value in logits.items()}
    return {"sha256": hashes, "labels": labels, **floats}


def latency_arrays(timed: LatencyResult) -> dict[str, NDArray[Any]]:
    """Return each file's times and the round of each: ratios are taken within rounds."""
    times = {name: np.asarray(one.samples_ms, np.float64) for name, one in timed.models.items()}
    return {**times, **{f"rounds/{name}": np.asarray(one.rounds, np.int64) for name, one in timed.models.items()}}
