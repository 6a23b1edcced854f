"""report.json: everything that a run found out, and the verdict.

Requirements are judged here, from numbers: changing a limit re-measures nothing.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from compress.core.records.base import to_json
from compress.core.records.deployment import Exported, Packaged
from compress.core.records.training import Stripped
from compress.core.records.warnings import texts
from compress.models.size_warning import size_increase_warning
from compress.recipe.schema import Train
from compress.report import stage_times
from compress.report.device_answer import merge
from compress.report.evidence import Branch, Evidence
from compress.report.schema import (
    BaselineSection,
    ClassRow,
    ComparisonRow,
    DataSection,
    DeviceRow,
    ExportSection,
    GainSection,
    IntegerGain,
    MethodChoiceSection,
    ModelRow,
    NamedDevice,
    NearDuplicatesSection,
    PackagedFile,
    PlanSection,
    QuantizeSection,
    Report,
    RequirementRow,
    ShippedFile,
    SliceRow,
    StageTime,
    StudentSection,
    TeacherSection,
    TimingSection,
    TuningSection,
    UnreadableFile,
)
from compress.verdict import device_requirements, method_choice, teacher_choice
from compress.verdict import requirements as verdict
from compress.verdict.clusters import row_drop
from compress.verdict.gains import distillation_gain, int8_gain, tuning_gain
from compress.verdict.intervals import PairedDrop
from compress.verdict.machine_text import on_this_machine
from compress.verdict.shipped_model import facts


def assemble(evidence: Evidence) -> Report:
    """Build the content of report.json and judge the requirements."""
    require, device = evidence.recipe.require, evidence.recipe.device
    asked = device_requirements.elsewhere(require) if device.distant else require
    ship = facts(evidence.measured, evidence.models, on_this_machine(evidence.environment))
    requirements = verdict.judge(asked, ship, evidence.where)
    rows = [DeviceRow.model_validate(row) for row in evidence.verified.rows]
    measured = [ModelRow.model_validate(row) for row in evidence.measured.models]
    students = [row for row in measured if row.role != "baseline"]
    extra = [row for row in measured if row.role == "baseline"]
    plain = {row.file for row in extra}
    comparisons = [ComparisonRow.model_validate(row) for row in evidence.measured.comparisons]
    times = stage_times.stages(evidence.seconds, evidence.reused)
    cautions = list(texts(evidence.warnings, affects_verdict=True))
    report = Report(
        schema=1,
        recipe=evidence.name,
        status=verdict.status(requirements),
        started=evidence.started,
        command=evidence.command,
        teacher=_teacher(evidence),
        student=_student(evidence.student, evidence.recipe.train),
        models=students,
        comparisons=[row for row in comparisons if row.model not in plain and row.against not in plain],
        baseline=_baseline(evidence.baseline, extra, comparisons),
        distillation=_distillation(evidence),
        int8_against_float=_integer_gain(evidence),
        tuning=_tuning(evidence),
        ships=ShippedFile(file=ship.file, sentence=evidence.measured.ships_because),
        named_device=NamedDevice(target=device.name, failure=evidence.verified.failure) if device.distant else None,
        device=[] if device.distant else rows,
        requirements=[RequirementRow.model_validate(asdict(row)) for row in requirements],
        data=_data(evidence, students[0].images),
        classes=list(evidence.prepared.classes),
        per_class=[ClassRow.model_validate(row) for row in evidence.measured.per_class],
        slices=[SliceRow.model_validate(row) for row in evidence.measured.slices],
        unreadable=[UnreadableFile(path=row.path, reason=row.reason) for row in evidence.prepared.unreadable],
        export=_export(evidence.student.fp32),
        package=_package(evidence.packaged),
        quantize=_quantized(evidence.student),
        latency=TimingSection.model_validate(evidence.measured.latency),
        cautions=cautions,
        warnings=[
            *cautions,
            *texts(evidence.warnings, affects_verdict=False),
            *_grown(evidence.student.stripped),
            *evidence.measured.warnings,
        ],
        seconds=times["seconds"],
        reused=times["reused"],
        stages=[StageTime.model_validate(row) for row in times["stages"]],
        environment=dict(evidence.environment),
    )
    report = report.model_copy(update=_where_there_are_any(evidence))
    if not device.distant:
        return report
    return merge(report, require, rows, device.name, where=evidence.where, failure=evidence.verified.failure)


def _where_there_are_any(evidence: Evidence) -> dict[str, Any]:
    """Return the sections that only some reports have."""
    sections: dict[str, Any] = {}
    if not evidence.recipe.shows_images:
        sections["images_shown"] = False
    if evidence.near_duplicates:
        found = {key: value for key, value in vars(evidence.near_duplicates).items() if key != "examples"}
        sections["near_duplicates"] = NearDuplicatesSection.model_validate(found)
    if evidence.method_choice:
        sections["method_choice"] = MethodChoiceSection.model_validate(method_choice.content(evidence.method_choice))
    if evidence.plan:
        sections["plan"] = PlanSection.model_validate(evidence.plan)
    return sections


def _teacher(evidence: Evidence) -> TeacherSection:
    candidates = teacher_choice.rows(list(evidence.candidates), evidence.selected)
    chosen = {key: value for key, value in candidates[evidence.selected.index].items() if key != "chosen"}
    return TeacherSection.model_validate({**chosen, "reason": evidence.selected.reason, "candidates": candidates})


def _student(branch: Branch, train: Train) -> StudentSection:
    student, stripped = branch.trained, branch.stripped
    return StudentSection(
        model=student.network.model,
        width=student.network.width,
        params=stripped.trained.params,
        macs=stripped.trained.macs,
        plain_params=stripped.plain_params,
        plain_macs=stripped.plain_macs,
        dropped=list(stripped.dropped),
        epochs=student.epochs,
        shipped_epoch=student.shipped_epoch,
        metric=(train.metric or "top1") if train.keep == "best" else None,
        method=student.method,
        top1_validation=stripped.trained.top1_validation,
        probe_top1_validation=student.checks.probe_top1 if student.checks else None,
        precision=student.precision,
        threads=student.threads,
        images_per_second=student.images_per_second,
        gpu=student.gpu,
        kernels=student.kernels,
        teacher_rows=student.teacher_rows,
    )


def _data(evidence: Evidence, test_images: int | None) -> DataSection:
    prepared = evidence.prepared
    return DataSection(
        source=prepared.source,
        image_size=prepared.image_size,
        classes=len(prepared.classes),
        validation_pictures=evidence.student.fp32.images,
        test_pictures=test_images,
        normalization=to_json(prepared.normalization),
    )


def _export(exported: Exported) -> ExportSection:
    known = to_json(exported)
    return ExportSection.model_validate(
        {key: value for key, value in known.items() if key not in ("file", "int8_source")}
    )


def _quantized(branch: Branch) -> QuantizeSection | None:
    """Return how the student's int8 file was made; `further`: those for other targets."""
    if branch.int8 is None:
        return None
    made = [
        {key: value for key, value in to_json(one).items() if key != "file"} for one in (branch.int8, *branch.further)
    ]
    return QuantizeSection.model_validate({**made[0], **({"further": made[1:]} if branch.further else {})})


def _package(packaged: Packaged | None) -> list[PackagedFile]:
    """Return the further forms of the student's files."""
    return [
        PackagedFile(
            file=extra.name,
            kind=extra.kind,
            source=extra.source,
            target=extra.target,
            sha256=extra.file.sha256,
            bytes=extra.file.bytes,
            max_abs_diff=extra.max_abs_diff,
            operators=None if extra.operators is None else list(extra.operators),
        )
        for extra in (packaged.files if packaged else ())
    ]


def _grown(stripped: Stripped) -> list[str]:
    """Return a sentence where what ships is larger than the student that the recipe names."""
    if stripped.plain_params is None or stripped.plain_macs is None:
        return []
    one = stripped.trained
    sentence = size_increase_warning(
        one.network.model, (stripped.plain_params, stripped.plain_macs), (one.params, one.macs or 0)
    )
    return [sentence] if sentence else []


def _baseline(branch: Branch | None, rows: list[ModelRow], comparisons: list[ComparisonRow]) -> BaselineSection | None:
    if branch is None:
        return None
    plain = {row.file for row in rows}
    return BaselineSection(
        models=rows,
        comparisons=[row for row in comparisons if row.model in plain or row.against in plain],
        epochs=branch.trained.epochs,
        top1_validation=branch.stripped.trained.top1_validation,
        seconds=branch.trained.seconds,
    )


def _distillation(evidence: Evidence) -> GainSection | None:
    """Return what the teacher was worth: the shipped student against the same one trained without a teacher."""
    shipped = facts(evidence.measured, evidence.models).file
    precision = next(model.precision for model in evidence.models if model.name == shipped)
    # Of several int8 files the device's counts, which comes first.
    names = {(model.role, model.precision): model.name for model in reversed(evidence.models)}
    wanted = names.get(("student", precision)), names.get(("baseline", precision))
    row = next((row for row in evidence.measured.comparisons if (row["model"], row["against"]) == wanted), None)
    if row is None:
        return None
    drop = row_drop(row)
    return GainSection.model_validate(_gain(drop, distillation_gain(drop)))


def _gain(drop: PairedDrop, sentence: str) -> dict[str, Any]:
    return {
        "gain_points": 0.0 - drop.drop_points,
        "ci95": [0.0 - drop.high, 0.0 - drop.low],
        "mcnemar_p": drop.p,
        "sentence": sentence,
    }


def _tuning(evidence: Evidence) -> TuningSection | None:
    """Return what quantisation-aware training was worth: the tuned int8 file against static int8."""
    tuned = evidence.student.tuned
    static = next((model for model in evidence.models if model.role == "static"), None)
    if tuned is None or static is None:
        return None
    row = next(row for row in evidence.measured.comparisons if row["against"] == static.name)
    drop = row_drop(row)
    own = {key: value for key, value in to_json(tuned).items() if key not in ("weights", "ranges", "history", "target")}
    gain = _gain(drop, tuning_gain(drop))
    return TuningSection.model_validate({**gain, "model": row["model"], "against": static.name, **own})


def _integer_gain(evidence: Evidence) -> IntegerGain | None:
    """Return what integer arithmetic is worth on this host; None where one of the two files was not timed."""
    names = {model.precision: model.name for model in reversed(evidence.models) if model.role == "student"}
    wanted = names.get("int8"), names["fp32"]
    row = next((row for row in evidence.measured.comparisons if (row["model"], row["against"]) == wanted), None)
    if row is None or row["speedup_p50"] is None:
        return None
    timing = evidence.measured.latency
    return IntegerGain(
        speedup=row["speedup_p50"],
        ci95=row["speedup_ci95"],
        top1_drop_points=row["top1_drop_points"],
        top1_drop_ci95=row["top1_drop_ci95"],
        sentence=int8_gain(
            row["speedup_p50"],
            row["speedup_ci95"],
            on_this_machine(evidence.environment).split(",")[0],
            unfit=timing.get("unfit"),
            cpu=timing.get("cpu_ratios"),
        ),
    )
