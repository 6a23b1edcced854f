"""The run folder: every file that ships, report.json with the verdict, report.html.

Requirements are judged here, from numbers: changing a limit re-measures nothing.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compress import device_limits, selection, verdict
from compress.atomic import write_json
from compress.delivery import Exported, Measured, ModelFile, Packaged, Quantized, Tuned, Verified
from compress.models.growth import larger
from compress.records import File, to_json
from compress.results import Distilled, Prepared, Stripped, Trained
from compress.schema import Recipe
from compress.selection import Selected
from compress.statistics import drop_from_counts


@dataclass(frozen=True)
class Branch:
    """A student from training to file: the distilled one, or the baseline."""

    trained: Distilled
    stripped: Stripped
    fp32: Exported
    int8: Quantized | None
    further: tuple[Quantized, ...] = ()  # int8 for other targets than the device's
    tuned: Tuned | None = None  # with `quantize.scheme: qat`
    static: Quantized | None = None  # int8 of the student before it was tuned: evidence, it does not ship


@dataclass(frozen=True)
class Evidence:
    """Everything that the report is made of."""

    recipe: Recipe
    name: str
    prepared: Prepared
    candidates: tuple[Trained, ...]
    selected: Selected
    teacher: Trained
    student: Branch
    baseline: Branch | None
    models: tuple[ModelFile, ...]
    measured: Measured
    verified: Verified
    seconds: Mapping[str, float]
    reused: tuple[str, ...]
    environment: Mapping[str, Any]
    command: str
    started: str
    notices: tuple[str, ...]
    where: Mapping[str, str]  # requirement -> path:line:column in the recipe
    plan: dict[str, Any] | None = None  # what `student.choose` picked by
    packaged: Packaged | None = None


def write(evidence: Evidence, folder: Path) -> dict[str, Any]:
    """Fill the run folder and return report.json's content."""
    from compress.report import render

    content = assemble(evidence)
    _copy_files(evidence, folder)
    write_json(folder / "environment.json", evidence.environment)
    write_json(folder / "report.json", content)
    render(folder)
    return content


def assemble(evidence: Evidence) -> dict[str, Any]:
    """report.json (contract: schema 1; keys beyond the contract are documented in compress.report)."""
    require, device = evidence.recipe.require, evidence.recipe.device
    asked = device_limits.elsewhere(require) if device.distant else require
    requirements = verdict.judge(asked, facts(evidence.measured, evidence.models), evidence.where)
    students = [row for row in evidence.measured.models if row["role"] != "baseline"]
    extra = [row for row in evidence.measured.models if row["role"] == "baseline"]
    plain = {row["file"] for row in extra}
    student, stripped = evidence.student.trained, evidence.student.stripped
    content = {
        "schema": 1,
        "recipe": evidence.name,
        "status": verdict.status(requirements),
        "started": evidence.started,
        "command": evidence.command,
        "teacher": _teacher(evidence),
        "student": {
            "model": student.network.model,
            "width": student.network.width,
            "params": stripped.trained.params,
            "macs": stripped.trained.macs,
            "plain_params": stripped.plain_params,
            "plain_macs": stripped.plain_macs,
            "dropped": list(stripped.dropped),
            "epochs": student.epochs,
            "shipped_epoch": student.shipped_epoch,
            "method": student.method,
            "top1_validation": stripped.trained.top1_validation,
            "precision": student.precision,
            "threads": student.threads,
            "images_per_second": student.images_per_second,
        },
        "models": students,
        "comparisons": [row for row in evidence.measured.comparisons if row["model"] not in plain and row["against"] not in plain],
        "baseline": _baseline(evidence, extra),
        "distillation": _worth(evidence),
        "int8_against_float": _int8(evidence),
        "tuning": _tuning(evidence),
        "ships": {"file": facts(evidence.measured, evidence.models).file, "sentence": evidence.measured.ships_because},
        "named_device": {"target": device.name, "failure": evidence.verified.failure} if device.distant else None,
        "device": [] if device.distant else list(evidence.verified.rows),
        "requirements": [asdict(row) for row in requirements],
        "data": {
            "source": evidence.prepared.source,
            "image_size": evidence.prepared.image_size,
            "classes": len(evidence.prepared.classes),
            "validation_pictures": evidence.student.fp32.pictures,
            "test_pictures": students[0]["images"],
            "normalization": to_json(evidence.prepared.normalization),
        },
        "classes": list(evidence.prepared.classes),
        "per_class": list(evidence.measured.per_class),
        "slices": list(evidence.measured.slices),
        "unreadable": to_json(evidence.prepared.unreadable),
        "export": {key: value for key, value in to_json(evidence.student.fp32).items() if key not in ("file", "int8_source")},
        "package": _package(evidence.packaged),
        "quantize": _quantized(evidence.student),
        "latency": evidence.measured.latency,
        "warnings": [*evidence.notices, *_grown(stripped), *evidence.measured.warnings],
        **_stages(evidence.seconds, evidence.reused),
        "environment": dict(evidence.environment),
        **({"plan": evidence.plan} if evidence.plan else {}),
    }
    if not device.distant:
        return content
    return device_limits.merge(content, require, evidence.verified.rows, device.name, where=evidence.where, failure=evidence.verified.failure)


def _quantized(branch: Branch) -> dict[str, Any] | None:
    """How the student's int8 file was made; `further`: those for other targets."""
    if branch.int8 is None:
        return None
    made = [{key: value for key, value in to_json(one).items() if key != "file"} for one in (branch.int8, *branch.further)]
    return {**made[0], **({"further": made[1:]} if branch.further else {})}


def _stages(seconds: Mapping[str, float], reused: tuple[str, ...]) -> dict[str, Any]:
    """`seconds` by stage, `reused`: the stages of which nothing was run; `stages`: the same for each part ("teacher resnet20")."""
    total: dict[str, float] = {}
    for title, value in seconds.items():
        stage = title.split(" ")[0]
        total[stage] = round(total.get(stage, 0.0) + value, 3)
    run = {title.split(" ")[0] for title in seconds if title not in reused}
    parts = [{"title": title, "seconds": value, "reused": title in reused} for title, value in seconds.items()]
    return {"seconds": total, "reused": [stage for stage in total if stage not in run], "stages": parts}


def facts(measured: Measured, models: tuple[ModelFile, ...]) -> verdict.Facts:
    """The numbers of the file that ships, against the float teacher."""
    teacher = next(row for row in measured.models if row["role"] == "teacher")
    students = [row for row in measured.models if row["role"] == "student"]
    best = next((row for row in students if row["precision"] == "int8"), students[0])
    shipped = next((row for row in students if row["file"] == measured.ships), best)
    pair = next(row for row in measured.comparisons if row["model"] == shipped["file"] and row["against"] == teacher["file"])
    latency = shipped["latency_ms"] or {}
    floats = next(row["file"] for row in students if row["precision"] == "fp32")
    integers = next((row for row in measured.comparisons if (row["model"], row["against"]) == (best["file"], floats)), {})
    return verdict.Facts(
        file=shipped["file"],
        target="local",
        drop=drop_from_counts(pair["lost"], pair["gained"], pair["images"]),
        correct=round(shipped["top1"] * shipped["images"]),
        images=shipped["images"],
        latency_ms=latency.get("p50"),
        latency_ci95=_interval(latency.get("p50_ci95")),
        timed_runs=latency.get("runs"),
        speedup=pair["speedup_p50"],
        speedup_ci95=_interval(pair["speedup_ci95"]),
        int8_speedup=integers.get("speedup_p50"),
        int8_speedup_ci95=_interval(integers.get("speedup_ci95")),
        bytes=shipped["bytes"],
        teacher_bytes=teacher["bytes"],
        peak_memory_bytes=shipped["peak_memory_bytes"],
        int8_mac_share=shipped["int8_mac_share"],
        disturbed="; ".join(measured.latency.get("disturbances") or ()) or None,
        sha256=shipped["sha256"],
        precision=shipped["precision"],
        untimed=_untimed(shipped),
    )


def shipping(models: tuple[ModelFile, ...], measured: Measured) -> tuple[ModelFile, ...]:
    """All files but a student's int8 file that `keep: faster` took out; it judges the device's file, not those for other targets."""
    best = next((model.name for model in models if model.role == "student" and model.precision == "int8"), None)
    return tuple(model for model in models if model.name != best or measured.ships in (None, best))


def _untimed(row: dict[str, Any]) -> str | None:
    """Why a file has no time here."""
    from export.runtime import isa  # onnxruntime; training alone runs without

    return f"it is built for {row['target']} and this machine is {isa()}" if row["latency_ms"] is None and row["target"] else None


def _package(packaged: Packaged | None) -> list[dict[str, Any]]:
    """Further forms of the student's files."""
    return [
        {
            "file": extra.name,
            "kind": extra.kind,
            "source": extra.source,
            "target": extra.target,
            "sha256": extra.file.sha256,
            "bytes": extra.file.bytes,
            "max_abs_diff": extra.max_abs_diff,
            "operators": None if extra.operators is None else list(extra.operators),
        }
        for extra in (packaged.files if packaged else ())
    ]


def _interval(pair: list[float] | None) -> tuple[float, float] | None:
    return (pair[0], pair[1]) if pair else None


def _grown(stripped: Stripped) -> list[str]:
    """A sentence where what ships is larger than the student that the recipe names."""
    if stripped.plain_params is None or stripped.plain_macs is None:
        return []
    one = stripped.trained
    sentence = larger(one.network.model, (stripped.plain_params, stripped.plain_macs), (one.params, one.macs or 0))
    return [sentence] if sentence else []


def _teacher(evidence: Evidence) -> dict[str, Any]:
    candidates = selection.rows(list(evidence.candidates), evidence.selected)
    chosen = {key: value for key, value in candidates[evidence.selected.index].items() if key != "chosen"}
    return {**chosen, "reason": evidence.selected.reason, "candidates": candidates}


def _comparison(evidence: Evidence, model_role: str, against_role: str) -> dict[str, Any] | None:
    """The paired comparison of the shipped precision between two roles."""
    shipped = facts(evidence.measured, evidence.models).file
    precision = next(model.precision for model in evidence.models if model.name == shipped)
    names = {(model.role, model.precision): model.name for model in reversed(evidence.models)}  # of several int8 files the device's, the first
    wanted = names.get((model_role, precision)), names.get((against_role, precision))
    return next((row for row in evidence.measured.comparisons if (row["model"], row["against"]) == wanted), None)


def _baseline(evidence: Evidence, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    if evidence.baseline is None:
        return None
    plain = {row["file"] for row in rows}
    return {
        "models": rows,
        "comparisons": [row for row in evidence.measured.comparisons if row["model"] in plain or row["against"] in plain],
        "epochs": evidence.baseline.trained.epochs,
        "top1_validation": evidence.baseline.stripped.trained.top1_validation,
        "seconds": evidence.baseline.trained.seconds,
    }


def _worth(evidence: Evidence) -> dict[str, Any] | None:
    """What the teacher was worth: the shipped student against the same student trained without one."""
    row = _comparison(evidence, "student", "baseline")
    if row is None:
        return None
    drop = drop_from_counts(row["lost"], row["gained"], row["images"])
    return {"gain_points": 0.0 - drop.drop_points, "ci95": [0.0 - drop.high, 0.0 - drop.low], "mcnemar_p": drop.p, "sentence": verdict.distillation_worth(drop)}


def _tuning(evidence: Evidence) -> dict[str, Any] | None:
    """What training with fake quantisation was worth: the tuned int8 file against static int8 of the same student."""
    tuned = evidence.student.tuned
    static = next((model for model in evidence.models if model.role == "static"), None)
    if tuned is None or static is None:
        return None
    row = next(row for row in evidence.measured.comparisons if row["against"] == static.name)
    drop = drop_from_counts(row["lost"], row["gained"], row["images"])
    own = {key: value for key, value in to_json(tuned).items() if key not in ("weights", "ranges", "history", "target")}
    gain = {"gain_points": 0.0 - drop.drop_points, "ci95": [0.0 - drop.high, 0.0 - drop.low], "mcnemar_p": drop.p, "sentence": verdict.tuning_worth(drop)}
    return {**gain, "model": row["model"], "against": static.name, **own}


def _int8(evidence: Evidence) -> dict[str, Any] | None:
    names = {model.precision: model.name for model in reversed(evidence.models) if model.role == "student"}
    row = next((r for r in evidence.measured.comparisons if r["model"] == names.get("int8") and r["against"] == names["fp32"]), None)
    if row is None or row["speedup_p50"] is None:
        return None
    return {
        "speedup": row["speedup_p50"],
        "ci95": row["speedup_ci95"],
        "top1_drop_points": row["top1_drop_points"],
        "top1_drop_ci95": row["top1_drop_ci95"],
        "sentence": verdict.int8_against_float(row["speedup_p50"], row["speedup_ci95"]),
    }


def _copy_files(evidence: Evidence, folder: Path) -> None:
    """Copies, not links: a run folder can be moved, mailed and kept after the cache is cleaned."""
    for model in shipping(evidence.models, evidence.measured):
        shutil.copyfile(model.file.path, folder / model.name)
        if model.contract is not None:
            shutil.copyfile(model.contract.path, folder / f"{model.name}.contract.json")
    shutil.copyfile(evidence.student.stripped.trained.weights.path, folder / "student.safetensors")
    for extra in evidence.packaged.files if evidence.packaged else ():
        shutil.copyfile(extra.file.path, folder / extra.name)
    for name, file in (("predictions.npz", evidence.measured.predictions), ("latency.npz", evidence.measured.latency_samples)):
        shutil.copyfile(file.path, folder / name)
    shutil.copyfile(evidence.measured.pictures.path, folder / "pictures.npz")
    histories: dict[str, File | None] = {"student": evidence.student.trained.history}
    for name, branch in (("student", evidence.student), ("baseline", evidence.baseline)):
        if branch is not None and branch.tuned is not None:
            histories[f"{name}-tuning"] = branch.tuned.history
    if evidence.baseline is not None:
        histories["baseline"] = evidence.baseline.trained.history
    for number, one in enumerate(evidence.candidates, 1):
        name = one.network.model.replace("/", "-")
        histories[f"{name}-{number}" if name in histories else name] = one.history
    (folder / "history").mkdir(exist_ok=True)
    for name, history in histories.items():
        if history is not None:
            shutil.copyfile(history.path, folder / "history" / f"{name}.csv")
    shutil.copyfile(evidence.measured.bundle.path, folder / "bundle.zip")
    with zipfile.ZipFile(evidence.measured.bundle.path) as archive:
        archive.extractall(folder)


def mark_latest(folder: Path) -> None:
    """Point `latest` at the newest finished run, atomically."""
    link = folder.parent / ".latest.tmp"
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name)
    os.replace(link, folder.parent / "latest")
