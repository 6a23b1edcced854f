"""Benchmarks of training speed, on small networks: the result has every number that the pages use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from compress import models
from compress.core.console import Console
from compress.models import count
from compress.pipeline import run
from compress.recipe import loader

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def measured(folder: Path, script: str, *arguments: str) -> dict[str, Any]:
    """What a script wrote, and says that it wrote."""
    out = folder / "result.json"
    command = [sys.executable, f"benchmarks/{script}.py", *arguments, "--out", str(out)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"written: {out}" in done.stdout
    found: dict[str, Any] = json.loads(out.read_text())
    assert found["command"].startswith(f"python benchmarks/{script}.py")
    return found


def shape(value: Any) -> Any:
    """Keys and types of a result, without its numbers; of lists the first entry."""
    if isinstance(value, dict):
        return {key: shape(one) for key, one in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "number" if isinstance(value, (int, float)) else type(value).__name__


def stored(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
    return found


@pytest.mark.extended
def test_train_speed_result_has_every_number(tmp_path: Path) -> None:
    found = measured(
        tmp_path, "train_speed", "--device", "cpu", "--rounds", "1", "--pictures", "300", "--pair", "resnet8:resnet8"
    )
    (row,) = found["rows"]
    assert (row["teacher"], row["student"]) == ("resnet8", "resnet8")
    assert shape(row) == shape(stored("train_speed-cpu")["rows"][0])
    assert row["cold"]["ratio"]["median"] > 0


@pytest.mark.extended
def test_roofline_result_has_every_number(tmp_path: Path) -> None:
    found = measured(tmp_path, "roofline", "--steps", "3", "--batch", "8", "--pair", "resnet8:shufflenet_v2")
    (row,) = found["rows"]
    assert shape(row) == shape(stored("roofline-cpu")["rows"][0])
    once = {
        name: 8 * 2 * count.macs(models.build(name, classes=100), 32) / 1e9 for name in ("resnet8", "shufflenet_v2")
    }  # GFLOP of a forward pass
    assert row["teacher_gflop"] == pytest.approx(once["resnet8"], rel=0.01)
    assert (
        4.5 < row["gflop"] / once["shufflenet_v2"] < 5.5
    )  # with a backward pass of twice as many for each of two losses; a small head is in it
    weights = count.params(models.build("shufflenet_v2", classes=100))
    assert (
        row["operators"] > 500 and row["moved_gb"] > 8 * 4 * weights / 1e9
    )  # the optimizer alone reads and writes weights, momentum and gradients
    split = row["split_ms"]
    assert (
        min(
            split[part] for part in ("convolutions and products", "batch normalisation", "optimizer", "other operators")
        )
        > 0
    )
    assert split["Python, dispatch, launches"] >= 0 and split["convolutions and products"] > split["optimizer"]
    assert row["teacher_ms"] > 0 and 0 < row["teacher_share_of_peak"] < 1 and 0 < row["share_of_peak"] < 1


@pytest.mark.extended
def test_startup_result_has_every_number(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(
        "data: {source: fashion, limit_train: 300, limit_test: 100, validation: 100, calibration: 64}\n"
        "teacher: {candidates: [{model: resnet8, train: {epochs: 1}}]}\n"
        "student: {model: resnet8}\n"
        "train: {epochs: 1}\n"
        "validate: {repeats: 16, warmup: 1}\n"
    )
    run.run(
        loader.load(tmp_path / "tiny.yaml"),
        artifacts=tmp_path / "a",
        device="cpu",
        until=None,
        force=(),
        console=Console(quiet=True),
    )
    found = measured(
        tmp_path, "startup", str(tmp_path / "tiny.yaml"), "--repeats", "1", "--artifacts", str(tmp_path / "a")
    )
    assert shape(found["rows"]) == shape(stored("startup")["rows"])
