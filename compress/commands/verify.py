"""`compress verify`: a device's answer in a run's report, and the limits on time and memory judged again by its numbers."""

from __future__ import annotations

import json
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
from compress.verdict.device_requirements import keeps_int8

Row = dict[str, Any]


def verify(
    run_folder: Path,
    *,
    target: str | None,
    preprocess: str | None = None,
    sustained: int | None = None,
    console: Console,
) -> Row:
    """Run the bundle on a device, merge its answer into the run's report, and judge its limits on time and memory by that device's numbers.

    `target` None: the device that the recipe names. `sustained`: seconds without a pause; None: the recipe's. Answers the new content of
    report.json. Raises UsageError, MissingError (out of reach), StageError (wrong answers; the report is written).
    """
    from compress.report.page import render
    from compress.stages import device
    from compress.stages.support import device_session
    from export.targets import VerifySettings, parse
    from export.targets.dispatch import describe_failure

    content = json.loads((run_folder / "report.json").read_text())
    bundle = run_folder / "bundle.zip"
    if not bundle.is_file():
        raise MissingError(f"{bundle} is missing; make it again: {again(run_folder)}")
    require, timing, named = settings_of(run_folder)
    target = target or named.target
    if sustained is None:  # what the recipe asks for is asked of the recipe's device; of this machine `validate` did it
        sustained = timing.sustained_seconds if named.distant and target == named.target else 0
    work = run_folder / "device"
    work.mkdir(exist_ok=True)
    asked = VerifySettings(
        name=content["recipe"],
        threads=timing.threads,
        repeats=timing.repeats,
        preprocess=preprocess,
        sustained=sustained,
    )
    try:
        answer = device_session.ask(target, bundle, work, asked, console=console)
    finally:
        with suppress(OSError):  # where there is an answer in it
            work.rmdir()
    name, wrong = parse(target).shown, describe_failure(answer)
    rows = device.rows(answer, name)
    content = merge(content, require, rows, name, failure=f"{name}: {wrong}" if wrong else None)
    for one in (
        answer.get("also") or ()
    ):  # what the device could run besides; not asked for, so no limit is judged by it
        other = f"{name}?provider={one['provider']}"
        more = device.rows(one, other)
        content["device"] = [row for row in content["device"] if row["target"] != other] + list(more)
        rows += more
    said = _keep_again(run_folder, content, rows, name)
    write_json(run_folder / "report.json", content)
    render(run_folder)
    for row in rows:
        difference = "n/a" if row["max_abs_diff"] is None else f"{row['max_abs_diff']:.2e}"
        p50 = (
            f", p50 {row['latency_ms']['p50']:.3g} ms"
            if row["latency_ms"]
            else f" ({row['note']})"
            if row["note"]
            else ""
        )
        console.line(
            f"{row['file']}: agreement {row['agreement']:.4f} on {row['images']} pictures, max |diff| {difference}{p50}"
        )
        if row["provider"]:
            console.line(f"{row['file']}: {row['provider']['sentence']}")
        if row["photo_to_answer"]:
            console.line(f"{row['file']}: photo to answer: {row['photo_to_answer']}")
        if row["sustained"]:
            console.line(f"{row['file']}: {row['sustained']['sentence']}")
    for sentence in (answer["photos"]["sentence"], *(answer.get("remarks") or ())):
        console.line(sentence)
    for one in content["requirements"]:
        if one["target"] == name:
            console.line(f"{one['verdict']:<11}{one['name']} on {name}: {one['sentence']}", always=True)
    if said:
        console.notice(said)
    console.line(ending(content, run_folder), always=True)
    if wrong:
        raise StageError(f"{name}: {wrong}")
    return content


def _keep_again(run_folder: Path, content: Row, rows: tuple[Row, ...], name: str) -> str | None:
    """What `keep: faster` would decide by this answer of the recipe's device, where that is not what ships; the run folder stays as it is."""
    settings = yaml.safe_load((run_folder / RESOLVED).read_text(encoding="utf-8"))["quantize"]
    if settings.get("keep") != "faster" or (content.get("named_device") or {}).get("target") != name:
        return None
    files = {row["precision"]: row["file"] for row in reversed(content["models"]) if row["role"] == "student"}
    kept, sentence = keeps_int8(files["int8"], files["fp32"], rows, name)
    ships = content["ships"]["file"] == files["int8"]
    if kept == ships:
        content["ships"] = {**content["ships"], "sentence": sentence}
        return None
    return f"by this answer another file would ship; make the run again for that: {again(run_folder)} ({sentence})"


def settings_of(run_folder: Path) -> tuple[Require, Validate, Device]:
    """The limits, the measurement's settings and the device that a run was made with. Raises MissingError."""
    path = run_folder / RESOLVED
    if not path.is_file():
        raise MissingError(
            f"{path} is missing, so its limits are not known; make it again: {again(run_folder, RECIPE)}"
        )
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    device = Device.model_validate(content.get("device") or {})
    return Require.model_validate(content["require"]), Validate.model_validate(content["validate"]), device
