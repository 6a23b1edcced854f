"""A device's answer merged into report.json: its rows, and the requirements that its time and memory decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from compress.recipe.schema import Require
from compress.report.schema import DeviceRow, IntegerGain, ModelRow, NamedDevice, Report, RequirementRow
from compress.verdict import requirements as verdict
from compress.verdict.device_requirements import LIMITS
from compress.verdict.facts import Facts
from compress.verdict.gains import int8_gain
from compress.verdict.machine_text import machine_text


def merge(
    report: Report,
    require: Require,
    rows: Sequence[DeviceRow],
    target: str,
    *,
    where: Mapping[str, str] | None = None,
    failure: str | None = None,
) -> Report:
    """Return the report with a device's rows in place of its earlier ones, and its requirements judged again.

    A limit that this host could not judge is judged by the device alone, where the recipe names no other one. Every
    other row stays as it is.

    Args:
        report: the report before.
        require: the recipe's limits.
        rows: the device's answer, one row a file; empty where it gave none.
        target: the device, without options.
        where: path:line:column in the recipe of each limit; what is missing is taken from the report.
        failure: why the device gave no answer, or what is wrong with it.
    """
    old = report.requirements
    places = {row.name: row.where for row in old if row.name and row.where} | dict(where or {})
    chosen = {name: limit for name, limit in require.model_dump().items() if name in LIMITS}
    judged = verdict.judge(Require(**chosen), facts(report, rows, target), places)
    new = {row.name: RequirementRow.model_validate(asdict(row)) for row in judged}
    requirements = [row for row in old if row.name not in new or _stays(row, target, new[row.name])]
    requirements += new.values()
    order = list(Require.model_fields)
    requirements.sort(key=lambda row: (order.index(row.name or ""), row.target != "local", row.target))
    changes = {
        "device": [*(row for row in report.device if row.target != target), *rows],
        "requirements": requirements,
        "status": verdict.status(requirements),
    }
    if report.named_device and report.named_device.target == target:
        changes["named_device"] = NamedDevice(target=target, failure=failure)
        changes["int8_against_float"] = _integer_gain(report, rows, target)
    return report.model_copy(update=changes)


def _stays(row: RequirementRow, target: str, new: RequirementRow) -> bool:
    """Return whether an earlier row of a limit is kept beside the new one of `target`."""
    if row.target == target:
        return False
    return row.target != "local" or row.verdict != "not judged" or new.verdict == "not judged"


def facts(report: Report, rows: Sequence[DeviceRow], target: str) -> Facts:
    """Return time and memory of the file that ships to this device, as it measured them."""
    row, untimed = _shipped(report, rows, target)
    latency = row.latency_ms
    teacher = next((other.file for other in rows if other.role == "teacher"), None)
    ratio = row.speedup_over.get(teacher or "")
    integers = _integer_gain(report, rows, target)
    busy = "other processes were busy on the device" if row.contaminated else None
    return Facts(
        file=row.file or "",
        target=target,
        latency_ms=latency.p50 if latency else None,
        latency_ci95=latency.p50_ci95 if latency else None,
        timed_runs=latency.runs if latency else None,
        speedup=ratio[0] if ratio else None,
        speedup_ci95=ratio[1:] if ratio else None,
        int8_speedup=integers.speedup if integers else None,
        int8_speedup_ci95=integers.ci95 if integers else None,
        peak_memory_bytes=row.peak_memory_bytes,
        disturbed="; ".join(row.disturbances) or busy,
        unfit=_unfit(row),
        cpu_ratios=row.conditions.cpu_ratios if row.conditions else None,
        machine=f"on {target}" + (f", {machine_text(row.cpu, row.isa)}" if row.cpu else ""),
        sha256=row.sha256,
        precision=row.precision,
        untimed=untimed,
    )


def _shipped(report: Report, rows: Sequence[DeviceRow], target: str) -> tuple[DeviceRow, str | None]:
    """Return the device's row of the file that ships there, and why it has no time. Without an answer: no numbers.

    It is the student of the shipped precision that is built for this device.
    """
    models = report.models
    ships = report.ships.file if report.ships else None
    precision = "int8" if any((row.role, row.precision) == ("student", "int8") for row in models) else "fp32"
    precision = next((row.precision or "" for row in models if row.file == ships), precision)
    if not rows:
        return _unanswered(models, precision, ships), f"{target} gave no answer"
    students = [row for row in rows if row.role == "student" and row.precision == precision]
    right = [row for row in students if row.ok is not None]
    right.sort(key=lambda row: row.built_for != row.isa)
    row = (right or students or list(rows))[0]
    if not right:
        return row, f"the bundle's int8 file is built for {row.built_for} and {target} is {row.isa}"
    if row.not_timed:
        return row, f"{target} was not timed ({row.not_timed})"
    return row, None if row.ok else f"its answers on {target} are wrong"


def _unanswered(models: Sequence[ModelRow], precision: str, ships: str | None) -> DeviceRow:
    """Return a row without numbers of the file that ships."""
    students = [row for row in models if row.role == "student" and row.precision == precision]
    known = next((row for row in students if row.file == ships), students[0])
    return DeviceRow(file=known.file, sha256=known.sha256, precision=known.precision)


def _integer_gain(report: Report, rows: Sequence[DeviceRow], target: str) -> IntegerGain | None:
    """Return what integer arithmetic is worth on the device; None where it did not time both files."""
    students = [row for row in rows if row.role == "student"]
    floats = next((row.file for row in students if row.precision == "fp32"), None)
    timed = [row for row in students if row.precision == "int8" and floats in row.speedup_over]
    if floats is None or not timed:
        return None
    row = min(timed, key=lambda row: row.built_for != row.isa)
    speedup, low, high = row.speedup_over[floats]
    pair = next((one for one in report.comparisons if (one.model, one.against) == (row.file, floats)), None)
    return IntegerGain(
        speedup=speedup,
        ci95=(low, high),
        top1_drop_points=pair.top1_drop_points if pair else None,
        top1_drop_ci95=pair.top1_drop_ci95 if pair else None,
        target=target,
        sentence=int8_gain(
            speedup, (low, high), f"on {target}", _unfit(row), row.conditions.cpu_ratios if row.conditions else None
        ),
    )


def _unfit(row: DeviceRow) -> str | None:
    """Return why a device's times are too long, and its ratios doubtful."""
    return row.conditions.unfit if row.conditions else None
