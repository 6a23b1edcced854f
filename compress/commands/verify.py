"""`compress verify`: merges a device's answer into a run's report and judges time and memory by its numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from compress.core.console import Console
from compress.core.errors import MissingError, StageError
from compress.core.files import write_json
from compress.pipeline.run_folder.recipe_copy import RECIPE, RESOLVED, again
from compress.recipe.schema import Device, Require, Validate
from compress.report.console_summary import ending
from compress.report.device_answer import merge
from compress.report.read import read_report
from compress.report.schema import DeviceRow, Report, ShippedFile
from compress.verdict.device_requirements import keeps_int8

Row = dict[str, Any]


def verify(
    run_folder: Path,
    *,
    target: str | None,
    preprocess: str | None = None,
    sustained: int | None = None,
    console: Console,
) -> Report:
    """Run the bundle on a device, merge its answer into the run's report, and judge time and memory by its numbers.

    Args:
        run_folder: the finished run.
        target: the device; None: the one that the recipe names.
        preprocess: the application's photo decoder on the device.
        sustained: seconds without a pause; None: the recipe's.
        console: where the answer is printed.

    Returns:
        The new content of report.json.

    Raises:
        UsageError: the target is not one.
        MissingError: the device is out of reach.
        StageError: the device's answers are wrong; the report is written.
    """
    from compress.report.page import render
    from compress.stages.support import device_session
    from export.targets import VerifySettings, parse
    from export.targets.dispatch import describe_failure

    report = read_report(run_folder)
    bundle = run_folder / "bundle.zip"
    if not bundle.is_file():
        raise MissingError(f"{bundle} is missing; make it again: {again(run_folder)}")
    require, timing, named = settings_of(run_folder)
    target = target or named.target
    if sustained is None:  # the recipe's value is meant for the recipe's device; on this machine `validate` used it
        sustained = timing.sustained_seconds if named.distant and target == named.target else 0
    work = run_folder / "device"
    work.mkdir(exist_ok=True)
    asked = VerifySettings(
        name=report.recipe,
        threads=timing.threads,
        repeats=timing.repeats,
        preprocess=preprocess,
        sustained=sustained,
    )
    try:
        answer = device_session.ask(target, bundle, work, asked, console=console)
    finally:
        with suppress(OSError):  # there is an answer in it
            work.rmdir()
    name, wrong = parse(target).shown, describe_failure(answer)
    rows = _rows(answer, name)
    report = merge(report, require, rows, name, failure=f"{name}: {wrong}" if wrong else None)
    report, more = _with_other_providers(report, answer, name)
    rows += more
    report, said = _keep_again(run_folder, report, rows, name)
    write_json(run_folder / "report.json", report.to_json())
    render(run_folder)
    for row in rows:
        for line in _row_lines(row):
            console.line(line)
    for sentence in (answer["photos"]["sentence"], *(answer.get("remarks") or ())):
        console.line(sentence)
    for requirement in report.requirements:
        if requirement.target == name:
            console.line(f"{requirement.verdict:<11}{requirement.name} on {name}: {requirement.sentence}", always=True)
    if said:
        console.notice(said)
    console.line(ending(report, run_folder), always=True)
    if wrong:
        raise StageError(f"{name}: {wrong}")
    return report


def _with_other_providers(report: Report, answer: Row, name: str) -> tuple[Report, list[DeviceRow]]:
    """Add the rows of further providers that the device could run; nobody asked for them, so no limit is judged."""
    rows: list[DeviceRow] = []
    for one in answer.get("also") or ():
        other = f"{name}?provider={one['provider']}"
        more = _rows(one, other)
        kept = [row for row in report.device if row.target != other]
        report = report.model_copy(update={"device": [*kept, *more]})
        rows += more
    return report, rows


def _rows(answer: Row, target: str) -> list[DeviceRow]:
    """Return the report's rows of a device's answer."""
    from compress.stages import device

    return [DeviceRow.model_validate(row) for row in device.rows(answer, target)]


def _row_lines(row: DeviceRow) -> Iterator[str]:
    """Yield what a device answered for one file, for the console."""
    difference = "n/a" if row.max_abs_diff is None else f"{row.max_abs_diff:.2e}"
    p50 = row.latency_ms.p50 if row.latency_ms else None
    timed = f", p50 {p50:.3g} ms" if p50 is not None else f" ({row.note})" if row.note else ""
    yield f"{row.file}: agreement {row.agreement:.4f} on {row.images} images, max |diff| {difference}{timed}"
    if row.provider:
        yield f"{row.file}: {row.provider.sentence}"
    if row.photo_to_answer:
        yield f"{row.file}: photo to answer: {row.photo_to_answer}"
    if row.sustained:
        yield f"{row.file}: {row.sustained.sentence}"


def _keep_again(run_folder: Path, report: Report, rows: Sequence[DeviceRow], name: str) -> tuple[Report, str | None]:
    """Decide `keep: faster` again by this answer of the recipe's device; the run folder stays as it is.

    Returns the report with the new reason, and a sentence where another file would ship now.
    """
    settings = yaml.safe_load((run_folder / RESOLVED).read_text(encoding="utf-8"))["quantize"]
    if settings.get("keep") != "faster" or report.named_device is None or report.named_device.target != name:
        return report, None
    files = {row.precision: row.file or "" for row in reversed(report.models) if row.role == "student"}
    kept, sentence = keeps_int8(files["int8"], files["fp32"], [row.to_json() for row in rows], name)
    ships = report.ships or ShippedFile()
    if kept != (ships.file == files["int8"]):
        how = f"make the run again for that: {again(run_folder)}"
        return report, f"by this answer another file would ship; {how} ({sentence})"
    return report.model_copy(update={"ships": ships.model_copy(update={"sentence": sentence})}), None


def settings_of(run_folder: Path) -> tuple[Require, Validate, Device]:
    """Return the limits, the measurement's settings and the device that a run was made with. Raises MissingError."""
    path = run_folder / RESOLVED
    if not path.is_file():
        raise MissingError(
            f"{path} is missing, so its limits are not known; make it again: {again(run_folder, RECIPE)}"
        )
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    device = Device.model_validate(content.get("device") or {})
    return Require.model_validate(content["require"]), Validate.model_validate(content["validate"]), device
