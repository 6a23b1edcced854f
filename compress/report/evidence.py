"""What the report is made of: everything that the stages of a run handed on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compress.core.records.deployment import Exported, Measured, ModelFile, Packaged, Quantized, Tuned, Verified
from compress.core.records.training import Distilled, NearDuplicates, Prepared, Stripped, Trained
from compress.core.records.warnings import RunWarning
from compress.recipe.schema import Recipe
from compress.verdict.method_choice import MethodChoice
from compress.verdict.teacher_choice import Selected


@dataclass(frozen=True)
class Branch:
    """A student from training to file: the distilled one, or the baseline."""

    trained: Distilled
    stripped: Stripped
    fp32: Exported
    int8: Quantized | None
    # Int8 files for other targets than the device's.
    further: tuple[Quantized, ...] = ()
    # With `quantize.scheme: qat`.
    tuned: Tuned | None = None
    # Int8 of the student before it was tuned, for comparison; it does not ship.
    static: Quantized | None = None


@dataclass(frozen=True)
class Evidence:
    """Everything that the report is made of.

    `warnings`: all but those of the measurements. `where`: requirement -> path:line:column in the recipe. `plan`: what
    `student.choose` picked by.
    """

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
    warnings: tuple[RunWarning, ...]
    where: Mapping[str, str]
    plan: dict[str, Any] | None = None
    packaged: Packaged | None = None
    near_duplicates: NearDuplicates | None = None
    method_choice: MethodChoice | None = None


def model_files(teacher: Exported, student: Branch, baseline: Branch | None) -> tuple[ModelFile, ...]:
    """Return the files that `validate` measures, the teacher's first, under their names in the run folder.

    Args:
        teacher: the teacher's file.
        student: the student's files.
        baseline: the baseline's files; None without one.
    """
    files = [ModelFile("teacher.onnx", "teacher", "fp32", teacher.file, None, teacher.max_abs_diff, teacher.contract)]
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
