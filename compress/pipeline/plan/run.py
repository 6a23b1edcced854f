"""What to expect before any training: networks with random weights through export, int8 and timing, judged against the recipe's limits.

`run` is `compress plan`; `choose` is how `student.choose` picks. Both give plain values (`compress.report`, key `plan`). Every network is
cached alone, so that a second plan, and a run after a plan, measure nothing again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compress.core.errors import StageError, UsageError
from compress.core.files import write_json
from compress.core.records.base import File
from compress.core.records.training import CalibrationData, Normalization, Prepared
from compress.core.store import Store
from compress.models import catalog
from compress.pipeline.plan import alternatives as neighbours_stage
from compress.pipeline.plan import candidates, limits, stages, table
from compress.pipeline.plan.candidates import PlanCandidate
from compress.pipeline.plan.table import name_of
from compress.recipe.schema import KNOWN_CLASSES, Choice, Choose, Recipe, Student
from compress.stages import convert, data, quantize
from export.runtime import host, isa, runs_on

STAGES = (stages.EXPORT_UNTRAINED.name, stages.TIME_LOCALLY.name)
UNKNOWN_CLASSES = 10

Row = dict[str, Any]
Report = Callable[[str], None]


@dataclass(frozen=True)
class PlanContext:
    """What all networks of a plan share. `pictures` None: the data are not here, seeded noise stands in; `target` None: float ships."""

    recipe: Recipe
    store: Store
    classes: int
    normalization: Normalization
    pictures: CalibrationData | None
    target: str | None
    host: Mapping[str, Any]
    versions: Mapping[str, Any]
    where: Mapping[str, str]  # requirement -> path:line:column in the recipe
    base: Path  # where the recipe's relative paths begin

    @property
    def size(self) -> int:
        """Side of the input in pixels."""
        return self.recipe.data.image_size or 32

    @property
    def frame(self) -> candidates.InputSpec:
        """What the networks' records share."""
        return candidates.InputSpec(self.classes, self.size, self.normalization)


def ground(
    settings: Recipe,
    prepared: Prepared | None,
    store: Store,
    versions: Mapping[str, str],
    where: Mapping[str, str],
    base: Path,
) -> PlanContext:
    """`settings` is a resolved recipe; `prepared` None where its data are not here. Raises UsageError where int8 has no rule for this machine."""
    config = settings.data
    given = (
        Normalization(config.normalize.mean, config.normalize.std)
        if config.normalize
        else Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    )
    pictures = (
        None
        if prepared is None
        else replace(data.calibration(prepared, config), count=min(config.calibration, stages.PICTURES))
    )
    return PlanContext(
        recipe=settings,
        store=store,
        classes=len(prepared.classes) if prepared else KNOWN_CLASSES.get(config.source, UNKNOWN_CLASSES),
        normalization=prepared.normalization if prepared else given,
        pictures=pictures,
        target=None
        if settings.quantize.scheme == "none"
        else quantize.resolve_targets(settings.quantize, settings.device)[0],
        host=host(),
        versions={
            **versions,
            "convert": convert.CONVERT.version,
            "quantize": quantize.QUANTIZE.version,
        },  # other stages would write other files
        where=where,
        base=base,
    )


def run(ground: PlanContext, *, neighbours: int, report: Report) -> dict[str, Any]:
    """Teachers, the student (or those that `choose` picks from) and up to `neighbours` other networks; one line to `report` as each is done."""
    own, choice = ground.recipe.student.networks, ground.recipe.student.choose
    if choice is not None and not ground.recipe.device.distant and not runs_on(ground.target, isa()):
        raise UsageError(
            f"student.choose: an int8 file for {ground.target} cannot be timed on this machine ({isa()}); name a network in student.model instead"
        )
    others = _neighbours(ground, own[0], neighbours) if choice is None else []
    role = "choice" if choice else "student"
    rows = _measure(
        ground, [*(candidates.student(ground.recipe, role, one, ground.frame) for one in own), *others], report
    )
    mine = largest(rows, choice.max_latency_ms) if choice else next(row for row in rows if row["role"] == "student")
    requirements = mine["requirements"] if mine else []
    status = "failed" if mine is None else limits.status(requirements)
    content = {
        "schema": 1,
        "status": status,
        "student": mine["name"] if mine else None,
        "image_size": ground.size,
        "classes": ground.classes,
        "pictures": "training pictures" if ground.pictures else "noise",
        "threads": ground.recipe.validate_.threads,
        "device": ground.recipe.device.name,
        "host": dict(ground.host),
        "networks": rows,
        "requirements": requirements,
        "not_judged": [
            name
            for name, limit in ground.recipe.require
            if limit is not None and name not in limits.judged(ground.recipe, ground.base)
        ],
        "choose": _chosen(choice, rows, mine, table.place(ground.recipe.device.name)) if choice else None,
    }
    return {**content, "sentences": list(table.sentences(content))}


def choose(ground: PlanContext, *, report: Report) -> tuple[Choice, dict[str, Any]]:
    """What `student.choose` picks, and the plan that it was picked by. Raises StageError where no network is fast enough."""
    content = run(ground, neighbours=0, report=report)
    if content["choose"]["chosen"] is None:
        raise StageError(content["choose"]["sentence"])
    names = [name_of(one.model, one.width) for one in ground.recipe.student.networks]
    return ground.recipe.student.networks[names.index(content["choose"]["chosen"])], content


def keep(content: dict[str, Any], name: str, student: Student, artifacts: Path) -> dict[str, Any]:
    """Write the plan to `artifacts`/plans/<recipe>.json with what was asked for, and give it back."""
    content = {"recipe": name, "asked": student.model_dump(mode="json", by_alias=True), **content}
    path = artifacts / "plans" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)
    return content


def largest(rows: list[Row], budget_ms: float) -> Row | None:
    """The largest choice (MACs, then parameters) whose whole interval of the median lies within the budget, of equal ones the first."""
    fitting = [
        row for row in rows if row["role"] == "choice" and row[row["ships"]]["latency_ms"]["p50_ci95"][1] <= budget_ms
    ]
    return max(fitting, key=lambda row: (row["macs"], row["params"]), default=None)


def _chosen(choice: Choose, rows: list[Row], chosen: Row | None, where: str) -> dict[str, Any]:
    listed = [row for row in rows if row["role"] == "choice"]
    sentence = table.choice(listed, chosen, choice.max_latency_ms, where)
    return {"max_latency_ms": choice.max_latency_ms, "chosen": chosen["name"] if chosen else None, "sentence": sentence}


def _measure(ground: PlanContext, others: list[PlanCandidate], report: Report) -> list[Row]:
    """One row a network; the teachers' files run in the same rounds as each network's, so that ratios hold on a noisy machine."""
    listed = [*candidates.teachers(ground.recipe, ground.base, ground.frame), *others]
    names = [one.name for one in listed]
    report(table.header(names))
    references: dict[str, File] = {}
    rows: list[Row] = []
    for one in listed:
        drafted = _draft(ground, one)
        row = _row(ground, one, drafted, {} if one.role == "teacher" else references)
        if one.role == "teacher":
            references[one.name] = drafted.fp32
        rows.append(
            row
            if one.role == "teacher"
            else {**row, **limits.judge(ground.recipe, ground.base, ground.where, row, rows)}
        )
        report(table.line(rows[-1], names))
    return rows


def _draft(ground: PlanContext, one: PlanCandidate) -> stages.Drafted:
    target = None if one.role == "teacher" else ground.target
    # Layers named by their node are the student's own; another network has other nodes.
    floats = tuple(
        layer for layer in ground.recipe.quantize.float_layers if one.role == "student" or layer in ("first", "last")
    )
    drafted: stages.Drafted = ground.store.run(
        stages.EXPORT_UNTRAINED,
        ground.recipe.export,
        label=one.name,
        network=one.network,
        target=target,
        per_channel=ground.recipe.quantize.per_channel,
        float_layers=floats if target else (),
        pictures=ground.pictures,
        versions=dict(ground.versions),
        file=None if one.file is None else File.of(one.file),
    )
    return drafted


def _row(ground: PlanContext, one: PlanCandidate, drafted: stages.Drafted, references: Mapping[str, File]) -> Row:
    """The plan's row of one network; `speedups`: against each teacher, of the file that would ship."""
    timed = _timed(ground, one.name, drafted, references)
    titles = [f"{stage} {one.name}" for stage in STAGES]
    speedup = timed.speedup.get("int8", {}).get("fp32")
    slow = ground.recipe.quantize.keep == "faster" and (speedup is None or speedup[1] <= 1)
    ships = "fp32" if drafted.int8 is None or slow else "int8"
    return {
        "role": one.role,
        "name": one.name,
        "model": one.model,
        "width": one.width,
        "params": drafted.params,
        "macs": drafted.macs,
        "ships": ships,
        "ships_as": one.ships_as,
        "fp32": _file(drafted.fp32, "fp32", timed),
        "int8": None
        if drafted.int8 is None
        else {
            **_file(drafted.int8, "int8", timed),
            "target": drafted.target,
            "int8_mac_share": drafted.int8_mac_share,
            "islands": None if drafted.islands is None else list(drafted.islands),
        },
        "int8_speedup": speedup[0] if speedup else None,
        "int8_speedup_ci95": speedup[1:] if speedup else None,
        "speedups": [
            {"against": key, "speedup": pair[0], "ci95": pair[1:]}
            for key, pair in timed.speedup.get(ships, {}).items()
            if key in references
        ],
        "other_cores": timed.other_cores,
        "disturbances": list(timed.disturbances),
        "unfit": timed.unfit,
        "seconds": round(sum(ground.store.seconds[title] for title in titles), 1),
        "reused": all(title in ground.store.reused for title in titles),
    }


def _timed(ground: PlanContext, name: str, drafted: stages.Drafted, references: Mapping[str, File]) -> stages.Timed:
    """On the recipe's device; another one than this machine is asked anew each time, and times no teacher by itself."""
    device, threads = ground.recipe.device, ground.recipe.validate_.threads
    timed: stages.Timed
    if device.distant:
        timed = ground.store.run_uncached(
            stages.TIME_ON_DEVICE,
            device,
            label=name,
            draft=drafted,
            against=dict(references),
            pictures=ground.pictures,
            size=ground.size,
            threads=threads,
        )
    else:
        timed = ground.store.run(
            stages.TIME_LOCALLY,
            threads,
            label=name,
            draft=drafted,
            against=dict(references),
            pictures=ground.pictures,
            size=ground.size,
            host=dict(ground.host),
            versions=dict(ground.versions),
        )
    return timed


def _file(file: File, precision: str, timed: stages.Timed) -> Row:
    return {
        "bytes": file.bytes,
        "sha256": file.sha256,
        "latency_ms": timed.latency_ms.get(precision),
        "peak_memory_bytes": timed.peak_memory_bytes.get(precision),
    }


def _neighbours(ground: PlanContext, student: Choice, most: int) -> list[PlanCandidate]:
    """Other networks that the recipe could name, as its method would ship them; teachers are measured anyway."""
    teachers = tuple(name_of(one.model, one.width) for one in ground.recipe.teacher.candidates if one.onnx is None)
    found = ground.store.run(
        neighbours_stage.FIND_ALTERNATIVES,
        student,
        size=ground.size,
        classes=ground.classes,
        most=most,
        without=teachers,
        known=catalog.names(),
    )
    others = (
        candidates.neighbour(ground.recipe, Choice(model=one.model, width=one.width), ground.frame)
        for one in found.networks
    )
    return [one for one in others if one is not None]
