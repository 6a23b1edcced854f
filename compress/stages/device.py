"""Verification as the device does it: the bundle alone, unpacked, in a process of its own. Reads nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

from compress.errors import StageError
from compress.results import File, Verified
from compress.schema import Device
from compress.store import Context, Stage

LIMIT_SECONDS = 900


def _run(config: Device, *, context: Context, bundle: File, threads: int, host: dict[str, Any], versions: dict[str, str]) -> Verified:
    """Run `python -m export.verify` inside the unpacked bundle and take its answer. Raises StageError on a wrong answer."""
    return verify_local(bundle.path, context.work, threads=threads)


def verify_local(bundle: Path, work: Path, *, threads: int = 1) -> Verified:
    """The local device: this machine's interpreter, which sees only the bundle's folder (isolated from this project)."""
    answer = (work / "answer.json").resolve()
    answer.unlink(missing_ok=True)  # an answer of before says nothing about this bundle
    # PYTHONPATH and PYTHONSAFEPATH would put another `export` before the bundle's.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    with tempfile.TemporaryDirectory() as temporary:
        try:
            with zipfile.ZipFile(bundle) as archive:
                archive.extractall(temporary)
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:
            raise StageError(f"device local: {bundle} is damaged ({error}); make it again with: compress run --force validate") from error
        folder = next((path.parent for path in sorted(Path(temporary).rglob("manifest.json"))), Path(temporary))
        command = [sys.executable, "-m", "export.verify", "--json", str(answer), "--threads", str(threads), "."]
        try:
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise StageError(f"device local: the bundle's verifier did not answer within {LIMIT_SECONDS} seconds") from error
    if done.returncode != 0 or not answer.is_file():
        said = (done.stderr or done.stdout).strip().splitlines()
        raise StageError(f"device local: the bundle's verifier ended with {done.returncode}: {said[-1] if said else 'no message'}")
    content = json.loads(answer.read_text())
    return Verified(rows=tuple(_row(model, content, "local") for model in content["models"]), ok=bool(content["ok"]))


def _row(model: dict[str, Any], answer: dict[str, Any], target: str) -> dict[str, Any]:
    """report.json's `device` row."""
    host = answer["host"]
    return {
        "target": target,
        "file": model["file"],
        "sha256": model["sha256"],
        "role": model["role"],
        "precision": model["precision"],
        "host": host.get("os") or "",
        "cpu": host.get("cpu") or "",
        "onnxruntime": answer["onnxruntime"],
        "images": model["images"],
        "top1": model["top1"],
        "agreement": model["agreement"],
        "max_abs_diff": model["max_abs_diff"],
        "latency_ms": model["latency_ms"],
        "peak_memory_bytes": model.get("peak_memory_bytes"),
        "ok": model["ok"],
    }


run = Stage("device", 1, _run, Verified)
