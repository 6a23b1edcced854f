"""report.json: everything that a run found out, and the verdict.

Requirements are judged here, from numbers: changing a limit re-measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from compress.core.records.base import to_json
from compress.core.records.deployment import Exported, Measured, ModelFile, Packaged, Quantized, Tuned, Verified
from compress.core.records.training import Distilled, Prepared, Stripped, Trained
from compress.models.size_warning import size_increase_warning
from compress.recipe.schema import Recipe
from compress.report.device_answer import merge
from compress.verdict import device_requirements, teacher_choice
from compress.verdict import requirements as verdict
from compress.verdict.intervals import PairedDrop, drop_from_counts
from compress.verdict.shipped_model import facts
from compress.verdict.teacher_choice import Selected


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
    cautions: tuple[str, ...]  # why the verdict may mean little
    notices: tuple[str, ...]
    where: Mapping[str, str]  # requirement -> path:line:column in the recipe
    plan: dict[str, Any] | None = None  # what `student.choose` picked by
    packaged: Packaged | None = None


def assemble(evidence: Evidence) -> dict[str, Any]:
    """report.json (contract: schema 1; keys beyond the contract are documented in compress.report)."""
    require, device = evidence.recipe.require, evidence.recipe.device
    asked = device_requirements.elsewhere(require) if device.distant else require
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
            "gpu": student.gpu,
            "kernels": student.kernels,
            "teacher_rows": student.teacher_rows,
        },
        "models": students,
        "comparisons": [
            row for row in evidence.measured.comparisons if row["model"] not in plain and row["against"] not in plain
        ],
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
        "export": {
            key: value for key, value in to_json(evidence.student.fp32).items() if key not in ("file", "int8_source")
        },
        "package": _package(evidence.packaged),
        "quantize": _quantized(evidence.student),
        "latency": evidence.measured.latency,
        "cautions": list(evidence.cautions),
        "warnings": [*evidence.cautions, *evidence.notices, *_grown(stripped), *evidence.measured.warnings],
        **stages(evidence.seconds, evidence.reused),
        "environment": dict(evidence.environment),
        **({"plan": evidence.plan} if evidence.plan else {}),
    }
    if not device.distant:
        return content
    return merge(
        content, require, evidence.verified.rows, device.name, where=evidence.where, failure=evidence.verified.failure
    )


def _quantized(branch: Branch) -> dict[str, Any] | None:
    """How the student's int8 file was made; `further`: those for other targets."""
    if branch.int8 is None:
        return None
    made = [
        {key: value for key, value in to_json(one).items() if key != "file"} for one in (branch.int8, *branch.further)
    ]
    return {**made[0], **({"further": made[1:]} if branch.further else {})}


def stages(seconds: Mapping[str, float], reused: tuple[str, ...]) -> dict[str, Any]:
    """`seconds` by stage, `reused`: the stages of which nothing was run; `stages`: the same for each part ("teacher resnet20")."""
    total: dict[str, float] = {}
    for title, value in seconds.items():
        stage = title.split(" ")[0]
        total[stage] = round(total.get(stage, 0.0) + value, 3)
    run = {title.split(" ")[0] for title in seconds if title not in reused}
    parts = [{"title": title, "seconds": value, "reused": title in reused} for title, value in seconds.items()]
    return {"seconds": total, "reused": [stage for stage in total if stage not in run], "stages": parts}


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


def _grown(stripped: Stripped) -> list[str]:
    """A sentence where what ships is larger than the student that the recipe names."""
    if stripped.plain_params is None or stripped.plain_macs is None:
        return []
    one = stripped.trained
    sentence = size_increase_warning(
        one.network.model, (stripped.plain_params, stripped.plain_macs), (one.params, one.macs or 0)
    )
    return [sentence] if sentence else []


def _teacher(evidence: Evidence) -> dict[str, Any]:
    candidates = teacher_choice.rows(list(evidence.candidates), evidence.selected)
    chosen = {key: value for key, value in candidates[evidence.selected.index].items() if key != "chosen"}
    return {**chosen, "reason": evidence.selected.reason, "candidates": candidates}


def _comparison(evidence: Evidence, model_role: str, against_role: str) -> dict[str, Any] | None:
    """The paired comparison of the shipped precision between two roles."""
    shipped = facts(evidence.measured, evidence.models).file
    precision = next(model.precision for model in evidence.models if model.name == shipped)
    names = {
        (model.role, model.precision): model.name for model in reversed(evidence.models)
    }  # of several int8 files the device's, the first
    wanted = names.get((model_role, precision)), names.get((against_role, precision))
    return next((row for row in evidence.measured.comparisons if (row["model"], row["against"]) == wanted), None)


def _baseline(evidence: Evidence, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    if evidence.baseline is None:
        return None
    plain = {row["file"] for row in rows}
    return {
        "models": rows,
        "comparisons": [
            row for row in evidence.measured.comparisons if row["model"] in plain or row["against"] in plain
        ],
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
    return _gain(drop, verdict.distillation_worth(drop))


def _gain(drop: PairedDrop, sentence: str) -> dict[str, Any]:
    return {
        "gain_points": 0.0 - drop.drop_points,
        "ci95": [0.0 - drop.high, 0.0 - drop.low],
        "mcnemar_p": drop.p,
        "sentence": sentence,
    }


def _tuning(evidence: Evidence) -> dict[str, Any] | None:
    """What training with fake quantisation was worth: the tuned int8 file against static int8 of the same student."""
    tuned = evidence.student.tuned
    static = next((model for model in evidence.models if model.role == "static"), None)
    if tuned is None or static is None:
        return None
    row = next(row for row in evidence.measured.comparisons if row["against"] == static.name)
    drop = drop_from_counts(row["lost"], row["gained"], row["images"])
    own = {key: value for key, value in to_json(tuned).items() if key not in ("weights", "ranges", "history", "target")}
    return {**_gain(drop, verdict.tuning_worth(drop)), "model": row["model"], "against": static.name, **own}


def _int8(evidence: Evidence) -> dict[str, Any] | None:
    names = {model.precision: model.name for model in reversed(evidence.models) if model.role == "student"}
    row = next(
        (r for r in evidence.measured.comparisons if r["model"] == names.get("int8") and r["against"] == names["fp32"]),
        None,
    )
    if row is None or row["speedup_p50"] is None:
        return None
    return {
        "speedup": row["speedup_p50"],
        "ci95": row["speedup_ci95"],
        "top1_drop_points": row["top1_drop_points"],
        "top1_drop_ci95": row["top1_drop_ci95"],
        "sentence": verdict.int8_against_float(
            row["speedup_p50"], row["speedup_ci95"], unfit=evidence.measured.latency.get("unfit")
        ),
    }


def model_files(teacher_onnx: Any, student: Branch, baseline: Branch | None) -> tuple[ModelFile, ...]:
    """What validate measures, the teacher first; names are those in the run folder."""
    files = [
        ModelFile(
            "teacher.onnx", "teacher", "fp32", teacher_onnx.file, None, teacher_onnx.max_abs_diff, teacher_onnx.contract
        )
    ]
    for role, branch in (("student", student), ("baseline", baseline)):
        if branch is None:
            continue
        files.append(ModelFile(f"{role}.fp32.onnx", role, "fp32", branch.fp32.file, None, branch.fp32.max_abs_diff))
        if branch.int8 is not None:
            files.append(ModelFile(f"{role}.int8.onnx", role, "int8", branch.int8.file, branch.int8.target, None))
        if branch.static is not None:
            files.append(
                ModelFile(f"{role}.static.int8.onnx", "static", "int8", branch.static.file, branch.static.target, None)
            )
        files += [
            ModelFile(f"{role}.int8.{one.target}.onnx", role, "int8", one.file, one.target, None)
            for one in branch.further
        ]
    return tuple(files)
