"""Export and time the networks of a plan, and judge each by the recipe's limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from compress.core.records.base import File
from compress.pipeline.plan import candidates, limits, table
from compress.pipeline.plan.candidates import PlanCandidate
from compress.pipeline.plan.context import PlanContext
from compress.pipeline.plan.stages import EXPORT_UNTRAINED, TIME_LOCALLY, TIME_ON_DEVICE, Timed, UntrainedFiles
from compress.stages.support import foreign_teacher

STAGE_NAMES = (EXPORT_UNTRAINED.name, TIME_LOCALLY.name)

Row = dict[str, Any]


def measure(plan: PlanContext, others: list[PlanCandidate], report: Callable[[str], None]) -> list[Row]:
    """Export and time each network; return one row for each.

    The teachers' files run in the same rounds as each network's, so that ratios hold on a noisy machine.

    Args:
        plan: What the networks share.
        others: Networks beside the teachers.
        report: Called with each line of the table, as it is known.
    """
    listed = [*candidates.teachers(plan.recipe, plan.base, plan.input_spec), *others]
    names = [one.name for one in listed]
    report(table.header(names))
    references: dict[str, File] = {}
    rows: list[Row] = []
    for one in listed:
        files = _export(plan, one)
        row = _row(plan, one, files, {} if one.role == "teacher" else references)
        if one.role == "teacher":
            references[one.name] = files.fp32
        rows.append(
            row if one.role == "teacher" else {**row, **limits.judge(plan.recipe, plan.base, plan.where, row, rows)}
        )
        report(table.line(rows[-1], names))
    return rows


def _export(plan: PlanContext, one: PlanCandidate) -> UntrainedFiles:
    target = None if one.role == "teacher" else plan.target
    # Layers named by their node are the student's own; another network has other nodes.
    floats = tuple(
        layer for layer in plan.recipe.quantize.float_layers if one.role == "student" or layer in ("first", "last")
    )
    external = foreign_teacher.external_files(one.file) if one.file is not None else ()
    files: UntrainedFiles = plan.store.run(
        EXPORT_UNTRAINED,
        plan.recipe.export,
        label=one.name,
        network=one.network,
        target=target,
        per_channel=plan.recipe.quantize.per_channel,
        float_layers=floats if target else (),
        pictures=plan.images,
        versions=dict(plan.versions),
        file=None if one.file is None else File.of(one.file),
        **({"external": external} if external else {}),
    )
    return files


def _row(plan: PlanContext, one: PlanCandidate, files: UntrainedFiles, references: Mapping[str, File]) -> Row:
    """Return the plan's row of one network; `speedups`: of the file that would ship against each teacher."""
    timed = _timed(plan, one.name, files, references)
    titles = [f"{stage} {one.name}" for stage in STAGE_NAMES]
    speedup = timed.speedup.get("int8", {}).get("fp32")
    slow = plan.recipe.quantize.keep == "faster" and (speedup is None or speedup[1] <= 1)
    ships = "fp32" if files.int8 is None or slow else "int8"
    return {
        "role": one.role,
        "name": one.name,
        "model": one.model,
        "width": one.width,
        "params": files.params,
        "macs": files.macs,
        "ships": ships,
        "ships_as": one.ships_as,
        "fp32": _file(files.fp32, "fp32", timed),
        "int8": None
        if files.int8 is None
        else {
            **_file(files.int8, "int8", timed),
            "target": files.target,
            "int8_mac_share": files.int8_mac_share,
            "islands": None if files.islands is None else list(files.islands),
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
        "seconds": round(sum(plan.store.seconds[title] for title in titles), 1),
        "reused": all(title in plan.store.reused for title in titles),
    }


def _timed(plan: PlanContext, name: str, files: UntrainedFiles, references: Mapping[str, File]) -> Timed:
    """Time a network on the recipe's device; another machine is asked each time, and times no teacher by itself."""
    device, threads = plan.recipe.device, plan.recipe.validate_.threads
    timed: Timed
    if device.distant:
        timed = plan.store.run_uncached(
            TIME_ON_DEVICE,
            device,
            label=name,
            draft=files,
            against=dict(references),
            pictures=plan.images if plan.recipe.bundles_images else None,
            size=plan.size,
            threads=threads,
            synthetic=not plan.recipe.bundles_images,
        )
    else:
        timed = plan.store.run(
            TIME_LOCALLY,
            threads,
            label=name,
            draft=files,
            against=dict(references),
            pictures=plan.images,
            size=plan.size,
            host=dict(plan.host),
            versions=dict(plan.versions),
        )
    return timed


def _file(file: File, precision: str, timed: Timed) -> Row:
    return {
        "bytes": file.bytes,
        "sha256": file.sha256,
        "latency_ms": timed.latency_ms.get(precision),
        "peak_memory_bytes": timed.peak_memory_bytes.get(precision),
    }
