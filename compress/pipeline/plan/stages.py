"""The stages of a plan: export a network with random weights, quantise it, and time it on the recipe's device.

Speed, size and memory follow from the architecture. Accuracy does not, so a plan says nothing about it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import export.bundle.write
import export.graph.executed
import export.graph.foreign_model
import export.graph.from_torch
import export.graph.rewrites
import export.int8.quantize
import export.runtime.latency
import export.runtime.latency_stats
from compress import __version__
from compress.core.errors import StageError, UsageError
from compress.core.records.base import File
from compress.core.records.training import CalibrationData, Network
from compress.core.store import Context, Stage
from compress.models.count import macs, params
from compress.pipeline.plan.untrained import PLAN_IMAGES, plan_images, untrained
from compress.recipe.schema import Device, Export
from compress.stages.support import foreign_teacher
from compress.stages.support.device_session import ask
from export.bundle import synthetic as synthetic_images
from export.bundle.write import Shipped
from export.int8.integer_share import integer_share
from export.runtime import FOREIGN, Contract, ExportError, copy_model, isa, runs_on, write_sidecar
from export.runtime.latency_stats import LatencyResult
from export.targets import VerifySettings, dispatch

ROUNDS = 20
LEAST_RUNS, MOST_RUNS = 128, 700  # timed runs of each file
BUDGET_MS = 6000.0  # of all timed runs, as long as each file gets LEAST_RUNS
ATTEMPTS = 2  # a measurement that other processes disturbed is repeated once


@dataclass(frozen=True)
class UntrainedFiles:
    """A network with random weights, as files. `int8` is None for a teacher, and where the recipe ships float."""

    params: int
    # Multiply-accumulates of convolutions and linear layers for one image; None: an ONNX file does not show them.
    macs: int | None
    fp32: File
    int8: File | None
    target: str | None
    int8_mac_share: float | None  # in [0, 1]; None where this machine's kernels are not the target's
    islands: tuple[str, ...] | None  # layers that run in float inside int8, counted by kind and cause
    contract: File | None = None  # beside another project's file


@dataclass(frozen=True)
class Timed:
    """Latency at batch 1 on one machine, all files in the same rounds. Names are `fp32`, `int8` and the teachers'."""

    latency_ms: dict[str, dict[str, Any]]  # by name: p50, p50_ci95, p90, runs, threads, batch
    speedup: dict[str, dict[str, list[float]]]  # of fp32 and int8 against each other name: ratio, low, high
    peak_memory_bytes: dict[str, int | None]  # of fp32 and int8
    other_cores: float | None  # mean cores that other processes used meanwhile
    disturbances: tuple[str, ...]  # why absolute times are doubtful
    unfit: str | None  # why ratios are doubtful as well


def export_untrained(
    config: Export,
    *,
    context: Context,
    network: Network,
    target: str | None,
    per_channel: bool,
    float_layers: tuple[str, ...],
    pictures: CalibrationData | None,
    versions: dict[str, Any],
    file: File | None = None,
    external: tuple[File, ...] = (),
) -> UntrainedFiles:
    """Write the float file and, with a target, the int8 file.

    Args:
        config: The recipe's `export` section.
        context: Of the stage.
        network: How to build it.
        target: Of the int8 file; None: there is none.
        per_channel: As in `quantize`.
        float_layers: As in `quantize`.
        pictures: Images for the int8 ranges; None: seeded noise.
        versions: Part of the key only.
        file: An ONNX teacher, which is written with its logits alone.
        external: Files with the weights of the ONNX teacher; part of the key only.
    """
    if file is not None:
        return _copy(context, network, file, plan_images(pictures, network.image_size))
    images = plan_images(pictures, network.image_size)
    model = untrained(network, images)
    contract = Contract(
        classes=tuple(f"class {number}" for number in range(network.classes)),
        image_size=network.image_size,
        mean=network.normalization.mean,
        std=network.normalization.std,
        layout=config.input,
        made_by=f"compress {__version__}",
    )
    fp32, source, int8 = (context.work / name for name in ("model.onnx", "model.int8source.onnx", "model.int8.onnx"))
    audit = None
    try:
        export.graph.from_torch.to_onnx(model, fp32, contract, opset=config.opset, images=images)
        if target is not None:
            # It writes `source` if a rewrite is worth keeping.
            export.graph.rewrites.for_integers(fp32, source, images, integer_share)
            origin = source if source.is_file() else fp32
            export.int8.quantize.quantize(
                origin, int8, images, isa=target, per_channel=per_channel, float_layers=float_layers
            )
            audit = export.graph.executed.audit(int8) if runs_on(target, isa()) else None
    except ExportError as error:
        raise StageError(f"plan {network.model}: {error}") from error
    return UntrainedFiles(
        params=params(model),
        macs=macs(model, network.image_size),
        fp32=File.of(fp32),
        int8=None if target is None else File.of(int8),
        target=target,
        int8_mac_share=audit.int8_mac_share if audit else None,
        islands=tuple(f"{row['count']} {row['op']} ({row['cause']})" for row in audit.causes_counted())
        if audit
        else None,
    )


def _copy(context: Context, network: Network, file: File, images: NDArray[np.uint8]) -> UntrainedFiles:
    """Write another project's file with its logits alone, and its contract beside it."""
    path = context.work / "model.onnx"
    foreign_teacher.read_foreign(network, file.path, path, images)
    try:
        found = export.graph.foreign_model.inspect(
            path, image_size=network.side, outputs=network.outputs or network.classes
        )
    except ExportError as error:
        raise UsageError(f"plan {network.model}: {error}") from error
    contract = Contract(
        tuple(f"class {number}" for number in range(network.classes)),
        network.image_size,
        network.normalization.mean,
        network.normalization.std,
        found.layout,
        FOREIGN,
        channels=network.channels,
        order=network.order,
        own_size=network.own_size,
    )
    return UntrainedFiles(
        found.params, found.macs, File.of(path), None, None, None, None, File.of(write_sidecar(path, contract))
    )


def time_locally(
    config: int,
    *,
    context: Context,
    draft: UntrainedFiles,
    against: dict[str, File],
    pictures: CalibrationData | None,
    size: int,
    host: dict[str, Any],
    versions: dict[str, Any],
) -> Timed:
    """Time float, int8 and the teachers' files in turn on this machine.

    Args:
        config: Threads of onnxruntime.
        context: Of the stage.
        draft: The network's files.
        against: The teachers' files.
        pictures: Images to time on; None: seeded noise.
        size: Side of the images in pixels.
        host: This machine; part of the key, because a latency never crosses machines.
        versions: Part of the key only.
    """
    own = {"fp32": draft.fp32}
    if draft.int8 is not None and runs_on(draft.target, isa()):
        own["int8"] = draft.int8
    files = {**own, **against}
    images = plan_images(pictures, size)
    try:
        result = _latency({name: file.path for name, file in files.items()}, images, config)
        memory = {name: export.runtime.latency.memory(file.path, threads=config) for name, file in own.items()}
    except ExportError as error:
        raise StageError(f"plan: {error}") from error
    return Timed(
        latency_ms={
            name: {
                **result.models[name].summary(),
                "p50_ci95": list(export.runtime.latency_stats.p50_interval(result, name)[1:]),
            }
            for name in files
        },
        speedup={
            mine: {
                name: list(export.runtime.latency_stats.speedup_with_interval(result, name, mine))
                for name in files
                if name != mine
            }
            for mine in own
        },
        peak_memory_bytes=memory,
        other_cores=result.other_cores,
        disturbances=result.disturbances,
        unfit=result.unfit,
    )


def _latency(files: dict[str, Any], images: np.ndarray, threads: int) -> LatencyResult:
    """Time the files with as many runs as fit the budget."""
    first = export.runtime.latency.latency(files, images, threads=threads, warmup=2, repeats=3, rounds=1)
    turn = sum(model.p50_ms for model in first.models.values())
    repeats = min(MOST_RUNS, max(LEAST_RUNS, int(BUDGET_MS / turn)))
    return export.runtime.latency.latency(
        files, images, threads=threads, warmup=10, repeats=repeats, rounds=ROUNDS, attempts=ATTEMPTS
    )


def time_on_device(
    config: Device,
    *,
    context: Context,
    draft: UntrainedFiles,
    against: dict[str, File],
    pictures: CalibrationData | None,
    size: int,
    threads: int,
    synthetic: bool = False,
) -> Timed:
    """Let another device verify and time a bundle of the files.

    Args:
        config: The recipe's `device` section.
        context: Of the stage.
        draft: The network's files.
        against: The teachers' files.
        pictures: Images to time on; None: seeded noise.
        size: Side of the images in pixels.
        threads: Of onnxruntime.
        synthetic: Whether drawn images stand in for the user's, which must not leave this machine.

    Raises:
        MissingError: The device is out of reach.
        StageError: Its answers are wrong, or it timed nothing.
    """
    own = {"fp32": draft.fp32, **({"int8": draft.int8} if draft.int8 is not None else {})}
    names = {f"{number}.onnx": name for number, name in enumerate((*own, *against))}
    files = {**own, **against}
    models = []
    for file, name in names.items():
        copy_model(files[name].path, context.work / file)
        role, int8 = "teacher" if name in against else "student", name == "int8"
        models.append(Shipped(context.work / file, role, "int8" if int8 else "fp32", draft.target if int8 else None))
    images = synthetic_images.draw(PLAN_IMAGES, size, 0) if synthetic else plan_images(pictures, size)[:PLAN_IMAGES]
    try:
        bundle = export.bundle.write.write(
            context.work / "bundle", models, images, np.zeros(len(images), np.int64), title="plan"
        )
    except ExportError as error:
        raise StageError(f"plan: {error}") from error
    answer = ask(
        config.target,
        bundle.archive,
        context.work,
        VerifySettings(name="plan", threads=threads, repeats=LEAST_RUNS),
        console=context.console,
    )
    rows = {names[row["file"]]: row for row in answer["models"]}
    untimed = next((name for name in own if not rows[name].get("latency_ms")), None)
    if untimed is not None:
        why = answer.get("not_timed") or rows[untimed].get("note") or dispatch.describe_failure(answer)
        why = why or "no reason given"
        raise StageError(f"plan: {config.name} did not time {untimed}: {why}")
    timed = {name: row for name, row in rows.items() if row.get("latency_ms")}
    return Timed(
        latency_ms={name: row["latency_ms"] for name, row in timed.items()},
        speedup={mine: {names[other]: ratio for other, ratio in timed[mine]["speedup_over"].items()} for mine in own},
        peak_memory_bytes={name: rows[name].get("peak_memory_bytes") for name in own},
        other_cores=None,
        disturbances=tuple(next(iter(timed.values())).get("disturbances") or ()),
        unfit=(next(iter(timed.values())).get("conditions") or {}).get("unfit"),
    )


EXPORT_UNTRAINED = Stage("plan", 4, export_untrained, UntrainedFiles)
TIME_LOCALLY = Stage("plan-timing", 4, time_locally, Timed)
TIME_ON_DEVICE = Stage("plan-timing", 3, time_on_device, Timed)
