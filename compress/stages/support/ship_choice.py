"""Which of the student's files ships, and which files go into the bundle or are compared with each other."""

from __future__ import annotations

import export.runtime.latency_stats
from compress.core.records.deployment import ModelFile
from export.runtime.latency_stats import LatencyResult


def preferred_student(models: tuple[ModelFile, ...]) -> ModelFile:
    """Return the student's int8 file, of several the device's, which comes first; without int8 the float file."""
    students = [model for model in models if model.role == "student"]
    return next((model for model in students if model.precision == "int8"), students[0])


def choose_shipped(
    models: tuple[ModelFile, ...], times: LatencyResult, keep: str, seed: int
) -> tuple[ModelFile, str | None]:
    """Choose the student's file that ships by `quantize.keep`.

    Args:
        models: The files that were validated.
        times: Their latencies on this machine.
        keep: `always`, or `faster`: int8 that is not measurably faster than float does not ship.
        seed: Of the bootstrap behind the interval of the speed-up.

    Returns:
        The file, and what `keep: faster` decided, in one sentence; None: there was nothing to decide.
    """
    best = preferred_student(models)
    plain = next(model for model in models if model.role == "student" and model.precision == "fp32")
    if keep != "faster" or best is plain:
        return best, None
    if best.name not in times.models:
        reason = f"it is built for {best.target}, so its speed could not be judged here"
        return best, f"{best.name} ships although the recipe says keep: faster: {reason}."
    if times.unfit is not None and times.cpu_ratios is None:
        reason = f"its speed could not be judged here ({times.unfit})"
        return best, f"{best.name} ships although the recipe says keep: faster: {reason}."
    speedup, low, high = export.runtime.latency_stats.speedup_with_interval(times, plain.name, best.name, seed=seed)
    numbers = f"{speedup:.2f}x [{low:.2f}, {high:.2f}] its speed"
    if low > 1:
        return best, f"{best.name} ships: it is faster than the float student here ({numbers}), as keep: faster asks."
    reason = f"int8 is not measurably faster than the float student here ({numbers}; keep: faster)"
    return plain, f"{plain.name} ships instead of {best.name}: {reason}."


def bundled(models: tuple[ModelFile, ...], shipped: ModelFile) -> tuple[ModelFile, ...]:
    """Return all files but the int8 file for the device where the float file ships instead."""
    best = preferred_student(models)
    return tuple(model for model in models if model is not best or model is shipped or model.precision == "fp32")


def is_compared(model: ModelFile, against: ModelFile) -> bool:
    """Return whether the report compares two files.

    It compares every file with the teacher, int8 with its own float file, and the student with the baseline of the same
    precision. A tuned int8 file is compared with the static one for the same processor, that with the float student.
    """
    if against.role == "teacher":
        return True
    if model.role == "static":
        return against.role == "student" and against.precision == "fp32"
    same_kind = (model.precision, model.target) == (against.precision, against.target)
    if against.role == "static":
        return model.role == "student" and same_kind
    if model.role == against.role:
        return model.precision == "int8" and against.precision == "fp32"
    return model.role == "student" and against.role == "baseline" and same_kind
