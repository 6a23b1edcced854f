"""report.json as types: what a run found out, and the verdict. `compress schema --report` prints the JSON Schema.

`schema` stays 1: keys are added, none is removed or changes its meaning.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from compress.report.schema.analysis import AnalysisSection
from compress.report.schema.base import Number, ReportPart
from compress.report.schema.device import DeviceRow, NamedDevice
from compress.report.schema.files import (
    DataSection,
    ExportSection,
    GainSection,
    IntegerGain,
    NearDuplicatesSection,
    PackagedFile,
    QuantizeSection,
    ShippedFile,
    StageTime,
    TuningSection,
    UnreadableFile,
)
from compress.report.schema.measurements import (
    ClassRow,
    ComparisonRow,
    LatencySummary,
    ModelRow,
    SliceRow,
    TimingSection,
)
from compress.report.schema.networks import (
    BaselineSection,
    CandidateRow,
    MethodChoiceSection,
    MethodTrialRow,
    StudentSection,
    TeacherSection,
)
from compress.report.schema.plan import PlanSection
from compress.report.schema.requirement import RequirementRow
from compress.verdict.requirements import Status

__all__ = [
    "REQUIRED",
    "AnalysisSection",
    "BaselineSection",
    "CandidateRow",
    "ClassRow",
    "ComparisonRow",
    "DataSection",
    "DeviceRow",
    "ExportSection",
    "GainSection",
    "IntegerGain",
    "LatencySummary",
    "MethodChoiceSection",
    "MethodTrialRow",
    "ModelRow",
    "NamedDevice",
    "NearDuplicatesSection",
    "PackagedFile",
    "ReportPart",
    "PlanSection",
    "QuantizeSection",
    "Report",
    "RequirementRow",
    "ShippedFile",
    "SliceRow",
    "StageTime",
    "StudentSection",
    "TeacherSection",
    "TimingSection",
    "TuningSection",
    "UnreadableFile",
    "json_schema",
]

# The keys that every report has.
REQUIRED = (
    "schema",
    "recipe",
    "status",
    "teacher",
    "student",
    "models",
    "comparisons",
    "requirements",
    "seconds",
    "reused",
    "environment",
)


class Report(ReportPart):
    """Everything that a run found out, and the verdict."""

    model_config = ConfigDict(json_schema_extra={"required": list(REQUIRED)})

    schema_version: Literal[1] = Field(default=1, alias="schema", description="version of this format")
    recipe: str = Field(default="", description="the recipe's name")
    status: Status = Field(
        default="undecided",
        description="the verdict: failed if any requirement is, else undecided if any is undecided or not judged, "
        "else passed",
    )
    started: str | None = Field(
        default=None, description="when the run began, UTC, for example 2026-01-31 12:00:00 UTC"
    )
    command: str | None = Field(default=None, description="the command that made the run")
    teacher: TeacherSection = Field(default=TeacherSection(), description="the teacher and its candidates")
    student: StudentSection = Field(default=StudentSection(), description="the student and its training")
    models: list[ModelRow] = Field(default=[], description="the measured files, the teacher's first")
    comparisons: list[ComparisonRow] = Field(default=[], description="pairs of files on the same test images")
    baseline: BaselineSection | None = Field(
        default=None, description="the student without a teacher; null: `distill.baseline` is off"
    )
    distillation: GainSection | None = Field(
        default=None, description="the student against the baseline; null: no baseline"
    )
    int8_against_float: IntegerGain | None = Field(
        default=None, description="the int8 student against the float student; null: one of them was not timed"
    )
    tuning: TuningSection | None = Field(default=None, description="null: without `quantize.scheme: qat`")
    ships: ShippedFile | None = Field(default=None, description="the student's file that ships")
    named_device: NamedDevice | None = Field(
        default=None, description="the device that the recipe names; null: it is this host"
    )
    device: list[DeviceRow] = Field(default=[], description="the answers of the devices that ran the bundle")
    requirements: list[RequirementRow] = Field(
        default=[],
        description="the limits of `require` and their verdicts; a limit on time or memory has one row a device",
    )
    data: DataSection | None = Field(default=None, description="the data set")
    method_choice: MethodChoiceSection | None = Field(
        default=None, description="how `distill.method: auto` chose the method; absent: the recipe names it"
    )
    near_duplicates: NearDuplicatesSection | None = Field(
        default=None, description="near-duplicates across parts; missing or null: the data was not searched"
    )
    images_shown: bool | None = Field(
        default=None, description="false: the recipe keeps images out of the report; missing or null: they are shown"
    )
    classes: list[str] = Field(default=[], description="names of the classes, in the order of the logits")
    per_class: list[ClassRow] = Field(
        default=[], description="one row a class; where it is missing, the page computes it from predictions.npz"
    )
    slices: list[SliceRow] = Field(default=[], description="the images that the teacher is least sure of")
    unreadable: list[UnreadableFile] = Field(default=[], description="image files that were skipped")
    distill: dict[str, Any] | None = Field(
        default=None, description="settings of the distillation; the page shows them as they are"
    )
    export: ExportSection | None = Field(default=None, description="the student's float ONNX file")
    package: list[PackagedFile] = Field(default=[], description="further forms of the student's files")
    quantize: QuantizeSection | None = Field(
        default=None, description="the student's int8 file; null: `quantize.scheme: none`"
    )
    latency: TimingSection | None = Field(default=None, description="how latency was measured on this host")
    cautions: list[str] = Field(
        default=[],
        description="those of the warnings that say why the verdict may mean little; the page shows them beside it",
    )
    warnings: list[str] = Field(default=[], description="all warnings, one sentence each")
    seconds: dict[str, Number] = Field(
        default={}, description="stage: seconds that it took when it was made, also where it was reused"
    )
    reused: list[str] = Field(default=[], description="stages that came from the cache as a whole")
    stages: list[StageTime] = Field(default=[], description="the parts of the stages, in order")
    environment: dict[str, Any] = Field(
        default={}, description="this host and the versions of packages; the page shows them as they are"
    )
    plan: PlanSection | None = Field(
        default=None, description="what `student.choose` picked by; missing: the recipe names its student"
    )
    analysis: AnalysisSection | None = Field(
        default=None, description="what `compress analyze` found; missing: it was not run"
    )


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of report.json."""
    schema = Report.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return schema
