"""A student compiled by inductor on the CPU, from the command line to the int8 file, against an eager one."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import torch

from compress.cli import main

ROOT = Path(__file__).parents[3]
SMALL = (
    "data.limit_train=160",
    "teacher.candidates=[{model: resnet8x4, weights: embedded}]",
    "student.model=resnet8",
    "student.width=null",
    "distill.baseline=false",
    "train.epochs=1",
    "train.precision=float32",
)


def trained(artifacts: Path, engine: str, until: str) -> dict[str, float]:
    """The history's last row."""
    told = [part for one in (*SMALL, f"train.engine={engine}") for part in ("--set", one)]
    assert (
        main.main(
            [
                "run",
                str(ROOT / "recipes/mobilenet.yaml"),
                "--artifacts",
                str(artifacts),
                "--device",
                "cpu",
                "--until",
                until,
                *told,
            ]
        )
        == 0
    )
    (history,) = (artifacts / "cache" / "distill").glob("*/history.csv")
    with history.open() as stream:
        return {name: float(value) for name, value in list(csv.DictReader(stream))[-1].items()}


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="inductor needs a C++ compiler")
@pytest.mark.extended
def test_a_student_that_inductor_compiled_is_the_plain_one_and_becomes_an_int8_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    plain = trained(tmp_path / "plain", "eager", "distill")
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]

    compiled = trained(tmp_path / "compiled", "compile", "quantize")

    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before
    assert "cannot be compiled" not in capsys.readouterr().err
    assert {name: compiled[name] for name in ("ce", "bkl")} == pytest.approx(
        {name: plain[name] for name in ("ce", "bkl")}, rel=5e-3
    )
    assert list((tmp_path / "compiled" / "cache").glob("quantize/*/*.onnx"))
