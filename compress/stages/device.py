"""Verify the bundle as a device does: unpacked, in a process of its own, on this machine or another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compress.core.errors import MissingError, StageError
from compress.core.records.base import File
from compress.core.records.deployment import Verified
from compress.core.store import Context, Stage
from compress.recipe.schema import Device
from compress.stages.support.device_session import ask
from export.targets import VerifySettings, dispatch

LIMIT_SECONDS = 900


def run_device(
    config: Device, *, context: Context, bundle: File, threads: int, host: dict[str, Any], versions: dict[str, str]
) -> Verified:
    """Run `python -m export.verify` inside the unpacked bundle on this machine.

    Args:
        config: The recipe's `device` section.
        context: Of the stage.
        bundle: The bundle's zip file.
        threads: Of onnxruntime.
        host: This machine; part of the key.
        versions: Versions of torch, onnx and onnxruntime; part of the key only.

    Raises:
        StageError: The answers are wrong.
    """
    return verify_local(bundle.path, context.work, threads=threads)


def run_distant_device(config: Device, *, context: Context, bundle: File, settings: VerifySettings) -> Verified:
    """Let another device verify the bundle.

    A device that is out of reach or fails does not end the run: the record then holds the reason and how to go on.

    Args:
        config: The recipe's `device` section.
        context: Of the stage.
        bundle: The bundle's zip file.
        settings: Threads, repeats and the like.
    """
    try:
        answer = ask(config.target, bundle.path, context.work, settings, console=context.console)
    except (MissingError, StageError) as error:
        return Verified(rows=(), ok=False, failure=str(error), exit_code=error.exit_code)
    wrong = dispatch.describe_failure(answer)
    failure = f"{config.name}: {wrong}" if wrong else None
    return Verified(
        rows=rows(answer, config.name),
        ok=wrong is None,
        failure=failure,
        exit_code=StageError.exit_code if wrong else 0,
    )


def verify_local(bundle: Path, work: Path, *, threads: int = 1) -> Verified:
    """Verify on this machine, by an interpreter that sees only the bundle's folder and nothing of this project."""
    answer = ask("local", bundle, work, VerifySettings(threads=threads), limit_seconds=LIMIT_SECONDS)
    wrong = dispatch.describe_failure(answer)
    if wrong:
        raise StageError(f"device local: {wrong}")
    return Verified(rows=rows(answer, "local"), ok=True)


def rows(answer: dict[str, Any], target: str) -> tuple[dict[str, Any], ...]:
    """Return report.json's `device` rows, one for each model. `target`: the device's name, without options."""
    return tuple(_row(model, answer, target) for model in answer["models"])


def _row(model: dict[str, Any], answer: dict[str, Any], target: str) -> dict[str, Any]:
    host, photos = answer["host"], answer.get("photos") or {}
    return {
        "target": target,
        "file": model["file"],
        "sha256": model["sha256"],
        "role": model["role"],
        "precision": model["precision"],
        "built_for": model["target"],
        "host": host.get("os") or "",
        "cpu": host.get("cpu") or "",
        "isa": host.get("isa"),
        "cores": host.get("cores"),
        "memory_bytes": host.get("memory_bytes"),
        "python": host.get("python"),
        "onnxruntime": answer["onnxruntime"],
        "images": model["images"],
        "top1": model["top1"],
        "agreement": model["agreement"],
        "max_abs_diff": model["max_abs_diff"],
        "latency_ms": model["latency_ms"],
        "first_run_ms": model.get("first_run_ms"),
        "load_ms": model.get("load_ms"),
        "peak_memory_bytes": model.get("peak_memory_bytes"),
        "speedup_over": model.get("speedup_over") or {},
        "contaminated": model.get("contaminated"),
        "not_timed": answer.get("not_timed"),
        "note": model.get("note"),
        "provider": model.get("provider"),
        "photo_latency_ms": model.get("photo_latency_ms"),
        "photo_to_answer": answer.get("photo_to_answer") if model["file"] == answer.get("file") else None,
        "sustained": model.get("sustained"),
        "disturbances": model.get("disturbances") or [],
        "conditions": model.get("conditions"),
        "remarks": answer.get("remarks") or [],
        "photos": {"status": photos["status"], "sentence": photos["sentence"], **(model.get("photos") or {})}
        if photos
        else None,
        "ok": model["ok"],
    }


DEVICE = Stage("device", 3, run_device, Verified)
DISTANT_DEVICE = Stage("device", 3, run_distant_device, Verified)
