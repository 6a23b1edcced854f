"""The file that ships and its numbers."""

from __future__ import annotations

from typing import Any

from compress.core.records.deployment import Measured, ModelFile
from compress.verdict import requirements
from compress.verdict.class_requirements import ClassCounts
from compress.verdict.clusters import row_drop
from compress.verdict.facts import Facts


def facts(measured: Measured, models: tuple[ModelFile, ...], machine: str | None = None) -> Facts:
    """Return the numbers of the file that ships, against the float teacher. `machine`: see `Facts`."""
    teacher = next(row for row in measured.models if row["role"] == "teacher")
    students = [row for row in measured.models if row["role"] == "student"]
    best = next((row for row in students if row["precision"] == "int8"), students[0])
    shipped = next((row for row in students if row["file"] == measured.ships), best)
    pair = next(
        row for row in measured.comparisons if row["model"] == shipped["file"] and row["against"] == teacher["file"]
    )
    latency = shipped["latency_ms"] or {}
    floats = next(row["file"] for row in students if row["precision"] == "fp32")
    integers = next(
        (row for row in measured.comparisons if (row["model"], row["against"]) == (best["file"], floats)), {}
    )
    return Facts(
        file=shipped["file"],
        target="local",
        drop=row_drop(pair),
        correct=round(shipped["top1"] * shipped["images"]),
        images=shipped["images"],
        classes=_classes(measured.per_class),
        balanced_accuracy=shipped.get("balanced_accuracy"),
        balanced_accuracy_ci95=requirements.as_interval(shipped.get("balanced_accuracy_ci95")),
        macro_f1=shipped.get("macro_f1"),
        macro_f1_ci95=requirements.as_interval(shipped.get("macro_f1_ci95")),
        groups=shipped.get("groups"),
        top1_ci95=requirements.as_interval(shipped["top1_ci95"]) if shipped.get("groups") else None,
        latency_ms=latency.get("p50"),
        latency_ci95=requirements.as_interval(latency.get("p50_ci95")),
        timed_runs=latency.get("runs"),
        speedup=pair["speedup_p50"],
        speedup_ci95=requirements.as_interval(pair["speedup_ci95"]),
        int8_speedup=integers.get("speedup_p50"),
        int8_speedup_ci95=requirements.as_interval(integers.get("speedup_ci95")),
        bytes=shipped["bytes"],
        teacher_bytes=teacher["bytes"],
        peak_memory_bytes=shipped["peak_memory_bytes"],
        int8_mac_share=shipped["int8_mac_share"],
        disturbed="; ".join(measured.latency.get("disturbances") or ()) or None,
        unfit=measured.latency.get("unfit"),
        cpu_ratios=measured.latency.get("cpu_ratios"),
        machine=machine,
        sha256=shipped["sha256"],
        precision=shipped["precision"],
        untimed=_untimed(shipped),
    )


def _classes(rows: tuple[dict[str, Any], ...]) -> tuple[ClassCounts, ...]:
    """Return the counts of each class, which `per_class` holds for the file that ships."""
    return tuple(
        ClassCounts(row["class"], row["n"], row.get("right", 0), row["lost"], row["gained"])
        for row in rows
        if not row["n"] or "right" in row
    )


def shipping(models: tuple[ModelFile, ...], measured: Measured) -> tuple[ModelFile, ...]:
    """Return the files that ship: all but the device's int8 file where `keep: faster` took it out."""
    best = next((model.name for model in models if model.role == "student" and model.precision == "int8"), None)
    return tuple(model for model in models if model.name != best or measured.ships in (None, best))


def _untimed(row: dict[str, Any]) -> str | None:
    """Return why a file has no time here; None where it has one."""
    from export.runtime import isa  # loads onnxruntime, which training alone does without

    if row["latency_ms"] is not None or not row["target"]:
        return None
    return f"it is built for {row['target']} and this machine is {isa()}"
