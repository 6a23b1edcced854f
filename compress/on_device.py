"""`compress verify`: a device's answer in a run's report, and the limits on time and memory judged again by its numbers."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from compress import verdict
from compress.console import Console
from compress.errors import MissingError, StageError
from compress.schema import Require, Validate

LIMITS = ("max_latency_ms", "min_speedup", "max_memory_bytes")  # what another device answers differently
Row = dict[str, Any]


def verify(run_folder: Path, *, target: str, preprocess: str | None = None, console: Console) -> Row:
    """Run the bundle on a device, merge its answer into the run's report, and judge its limits on time and memory by that device's numbers.

    Answers the new content of report.json. Raises UsageError, MissingError (out of reach), StageError (wrong answers; the report is written).
    """
    from compress.report import render
    from compress.stages import device
    from export.targets import Settings, parse
    from export.targets.verify import complaint

    content = json.loads((run_folder / "report.json").read_text())
    bundle = run_folder / "bundle.zip"
    if not bundle.is_file():
        raise MissingError(f"{bundle} is missing; make it again: compress run {run_folder / 'recipe.yaml'}")
    require, timing = settings_of(run_folder)
    work = run_folder / "device"
    work.mkdir(exist_ok=True)
    asked = Settings(name=content["recipe"], threads=timing.threads, repeats=timing.repeats, preprocess=preprocess)
    answer = device.ask(target, bundle, work, asked, console=console)
    name = parse(target).name
    rows = device.rows(answer, name)
    content = merge(content, require, rows, name)
    for one in answer.get("also") or ():  # what the device could run besides; not asked for, so no limit is judged by it
        other = f"{name}?provider={one['provider']}"
        more = device.rows(one, other)
        content["device"] = [row for row in content["device"] if row["target"] != other] + list(more)
        rows += more
    write_report(run_folder, content)
    render(run_folder)
    for row in rows:
        difference = "n/a" if row["max_abs_diff"] is None else f"{row['max_abs_diff']:.2e}"
        p50 = f", p50 {row['latency_ms']['p50']:.3g} ms" if row["latency_ms"] else f" ({row['note']})" if row["note"] else ""
        console.line(f"{row['file']}: agreement {row['agreement']:.4f} on {row['images']} pictures, max |diff| {difference}{p50}")
    for sentence in (answer["photos"]["sentence"], *(answer.get("remarks") or ())):
        console.line(sentence)
    for one in content["requirements"]:
        if one["target"] == name:
            console.line(f"{one['verdict']:<11}{one['name']} on {name}: {one['sentence']}", always=True)
    wrong = complaint(answer)
    if wrong:
        raise StageError(f"{name}: {wrong}")
    return content


def write_report(run_folder: Path, content: Row) -> None:
    """Replace report.json in one step: a full disk must not cost the old one."""
    partial = run_folder / "report.json.partial"
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(run_folder / "report.json")


def settings_of(run_folder: Path) -> tuple[Require, Validate]:
    """The limits and the measurement's settings that a run was made with. Raises MissingError."""
    path = run_folder / "resolved.yaml"
    if not path.is_file():
        raise MissingError(f"{path} is missing, so its limits are not known; make it again: compress run {run_folder / 'recipe.yaml'}")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return Require.model_validate(content["require"]), Validate.model_validate(content["validate"])


def merge(content: Row, require: Require, rows: tuple[Row, ...], target: str) -> Row:
    """report.json's content with a device's rows in place of its earlier ones, and its requirements judged again.

    A limit that no other device could judge is this one's; every other row stays as it is.
    """
    old = [verdict.Requirement(**row) for row in content["requirements"]]
    where = {row.name: row.where for row in old}
    chosen = {name: limit for name, limit in require.model_dump().items() if name in LIMITS}
    new = {row.name: row for row in verdict.judge(Require(**chosen), facts(content, rows, target), where)}
    requirements: list[verdict.Requirement] = []
    for row in old:
        if row.name not in new or (row.target != target and row.verdict != "not judged"):
            requirements.append(row)
        elif row.verdict == "not judged" and row.target != target and new[row.name].verdict == "not judged":
            requirements.append(row)
    requirements += new.values()
    order = list(Require.model_fields)
    requirements.sort(key=lambda row: (order.index(row.name), row.target != "local", row.target))
    device = [row for row in content["device"] if row["target"] != target] + list(rows)
    return {**content, "device": device, "requirements": [asdict(row) for row in requirements], "status": verdict.status(requirements)}


def facts(content: Row, rows: tuple[Row, ...], target: str) -> verdict.Facts:
    """Time and memory of the file that ships to this device: the student of the shipped precision that is built for it."""
    ships = (content.get("ships") or {}).get("file")
    precision = "int8" if any(row["role"] == "student" and row["precision"] == "int8" for row in content["models"]) else "fp32"
    precision = next((row["precision"] for row in content["models"] if row["file"] == ships), precision)
    students = [row for row in rows if row["role"] == "student" and row["precision"] == precision]
    right = [row for row in students if row["ok"] is not None]
    right.sort(key=lambda row: row["built_for"] != row["isa"])
    row = (right or students or list(rows))[0]
    latency = row["latency_ms"] or {}
    teacher = next((other["file"] for other in rows if other["role"] == "teacher"), None)
    ratio = row["speedup_over"].get(teacher)
    untimed = None
    if not right:
        untimed = f"the bundle's int8 file is built for {row['built_for']} and {target} is {row['isa']}"
    elif row["not_timed"]:
        untimed = f"{target} was not timed ({row['not_timed']})"
    return verdict.Facts(
        file=row["file"],
        target=target,
        latency_ms=latency.get("p50"),
        latency_ci95=_pair(latency.get("p50_ci95")),
        timed_runs=latency.get("runs"),
        speedup=ratio[0] if ratio else None,
        speedup_ci95=_pair(ratio[1:] if ratio else None),
        peak_memory_bytes=row["peak_memory_bytes"],
        disturbed="other processes were busy on the device" if row["contaminated"] else None,
        sha256=row["sha256"],
        precision=row["precision"],
        untimed=untimed,
    )


def _pair(values: list[float] | None) -> tuple[float, float] | None:
    return (values[0], values[1]) if values else None
