"""The commands that run stages: a whole run, a plan, the teachers alone. The stages are in `workflow.py`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch

from compress.core import distributed
from compress.core.console import Console
from compress.core.errors import MissingError, UsageError
from compress.core.latest_run import mark_latest
from compress.core.records.base import sha256_of
from compress.core.store import StopAfter, Store
from compress.methods import compatibility
from compress.pipeline.run_folder import cache_refs, recipe_copy
from compress.pipeline.run_folder.cache_refs import Kept
from compress.pipeline.workflow import Workflow, places
from compress.recipe.defaults import resolve
from compress.recipe.loader import Loaded
from compress.report import run_folder as report
from compress.report import stage_times
from compress.report.console_summary import summary_lines
from compress.report.evidence import Evidence
from compress.stages import STAGES
from compress.verdict import majority_baseline, requirements, teacher_choice
from export.runtime.conditions import too_many_threads


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        exit_code: 0, 5 or 6, or that of a remote device's failure.
        report: The content of report.json; None where `--until` stopped the run, and on every rank but the first.
        run_folder: None wherever `report` is.
        stopped: What was run, where `--until` stopped the run.
    """

    exit_code: int
    report: dict[str, Any] | None
    run_folder: Path | None
    stopped: dict[str, Any] | None = None


def run(
    loaded: Loaded, *, artifacts: Path, device: str, until: str | None, force: tuple[str, ...], console: Console
) -> RunResult:
    """Run a recipe from teacher to verdict, and reuse every stage that is in the cache.

    Under torchrun the processes share the trainings.

    Args:
        loaded: The recipe.
        artifacts: Where the cache and the run folders lie.
        device: auto, cpu, cuda, cuda:N or mps.
        until: The last stage to run; None: all.
        force: Stages to run again.
        console: Where the run prints.
    """
    now = datetime.now(UTC)
    with distributed.joined(resolve_device(device)) as (group, own):
        loaded = loaded.run_with(artifacts, device)
        console = console if group.is_main else Console(silent=True)
        store = Store(artifacts, own, console, force, group, left_out(until))
        work = Workflow(loaded, resolve(loaded.recipe), store)
        for warning in loaded.warnings:
            console.notice(warning.text)
        try:
            evidence = work.run(started=f"{now:%Y-%m-%d %H:%M:%S} UTC")
        except StopAfter:
            return _stopped(loaded, store, until)
        return _finished(work, evidence, now) if group.is_main else RunResult(0, None, None)


def _stopped(loaded: Loaded, store: Store, until: str | None) -> RunResult:
    """Report where `--until` stopped the run."""
    if not store.group.is_main:
        return RunResult(0, None, None)
    store.console.line(f"stopped after {until}, as asked; run again without --until to go on")
    stages = stage_times.stages(store.seconds, tuple(store.reused))
    return RunResult(0, None, None, {"schema": 1, "recipe": loaded.name, "until": until, **stages})


def _finished(work: Workflow, evidence: Evidence, now: datetime) -> RunResult:
    """Write the run folder, print what the run found, and judge how it ends."""
    loaded, artifacts, console = work.loaded, work.store.root, work.store.console
    key = sha256_of(resolve(loaded.recipe))[:8]
    folder = _new_folder(artifacts / "runs" / loaded.name, now, key)
    recipe_copy.write(loaded, work.settings, folder)
    content = report.write(evidence, folder)
    branch = evidence.student
    own = work.settings.distill.alone().model_dump(mode="json", by_alias=True)
    cache_refs.write(Kept(evidence.teacher, branch.trained, branch.stripped, work.training, own), folder, artifacts)
    for text, verdict in summary_lines(content, folder):
        console.line(text, always=verdict)
    console.save_log(folder / "log.txt")
    mark_latest(folder)
    if evidence.verified.failure is None:
        return RunResult(requirements.exit_code(content.status), content.to_json(), folder)
    console.warn(f"{evidence.verified.failure}; the report is written without it; to go on: {_verify_command(loaded)}")
    return RunResult(evidence.verified.exit_code, content.to_json(), folder)


def left_out(until: str | None) -> tuple[str, ...]:
    """Return the names of the stages behind the one that `--until` names."""
    return () if until is None else STAGES[STAGES.index(until) + 1 :]


def _verify_command(loaded: Loaded) -> str:
    """Return the command that asks the recipe's device once more."""
    return shlex.join(["compress", "verify", loaded.name, *recipe_copy.options_of(loaded.command, ("--artifacts",))])


def _new_folder(parent: Path, now: datetime, key: str) -> Path:
    """Create a run folder; of two runs that begin in the same second, one gets the next second's name."""
    while True:
        folder = parent / f"{now:%Y%m%dT%H%M%SZ}-{key}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            now += timedelta(seconds=1)
        else:
            return folder


def plan(loaded: Loaded, *, artifacts: Path, neighbours: int, force: bool, console: Console) -> RunResult:
    """Measure networks with random weights before any training, and judge the limits that allow it.

    Args:
        loaded: The recipe.
        artifacts: Where the cache and the plans lie.
        neighbours: How many other networks to try.
        force: Measure again.
        console: Where the plan is printed.

    Returns:
        Exit code 0, 5 if the recipe's student misses a limit that can be judged, or 6; the plan.
    """
    from compress.pipeline.deployment import versions
    from compress.pipeline.plan import run as planning
    from compress.pipeline.plan.context import build_context
    from compress.pipeline.plan.measure import STAGE_NAMES

    settings = resolve(loaded.recipe)
    store = Store(artifacts, "cpu", console, STAGE_NAMES if force else ())
    prepared = None
    try:
        prepared = Workflow(loaded, settings, store).prepared
    except MissingError as error:
        console.notice(f"data: {error}")
        console.notice("planned with noise instead of images, which changes no time and no size")
    classes, size = (len(prepared.classes), prepared.image_size) if prepared else (10, settings.data.image_size or 32)
    for sentence in compatibility.check_pairs(loaded, settings, classes=classes, image_size=size):
        console.notice(sentence)
    narrow = None if settings.device.distant else too_many_threads(settings.validate_.threads)
    if narrow:
        console.warn(narrow)
    store.console = Console(quiet=True)  # the table shows what is done
    context = build_context(settings, prepared, store, versions(), places(loaded), loaded.path.resolve().parent)
    content = planning.run(context, neighbours=neighbours, report=console.line)
    for sentence in content["sentences"]:
        console.line(sentence)
    for row in content["requirements"]:
        where = "" if row["verdict"] == "passed" else f" ({row['where']})"
        console.line(f"{row['verdict']:<11}{row['name']}: {row['sentence']}{where}", always=True)
    content = planning.keep(content, loaded.name, loaded.recipe.student, artifacts)
    return RunResult(requirements.exit_code(content["status"]), content, None)


def teachers(loaded: Loaded, *, artifacts: Path, device: str, console: Console) -> list[dict[str, Any]]:
    """Train or load the teacher candidates alone; return the selection table, one row for each."""
    work = Workflow(loaded, resolve(loaded.recipe), Store(artifacts, resolve_device(device), console))
    if work.settings.teacher.select == "proxy":
        work.choose_student()
    candidates, selected = work.selected()
    console.line(f"teacher: {selected.reason}")
    for one in candidates:
        work.warn(majority_baseline.of_teacher(one, work.training))
    return teacher_choice.rows(candidates, selected)


def resolve_device(name: str) -> str:
    """Turn auto, cpu, cuda, cuda:N or mps into torch's name for the device.

    A GPU named by its number becomes torch's current device, which streams and graphs use.

    Raises:
        MissingError: The machine has no such device.
        UsageError: The name is none of these.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise MissingError("--device cuda: torch sees no CUDA device here; see it with: compress doctor")
    if name == "mps" and not torch.backends.mps.is_available():
        raise MissingError("--device mps: torch sees no Metal device here; see it with: compress doctor")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name}: expected auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda" and device.index is not None and not distributed.under_torchrun():
        if device.index >= torch.cuda.device_count():
            raise MissingError(
                f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices here, counted from 0; "
                "see them with: compress doctor"
            )
        torch.cuda.set_device(device)
    return name
