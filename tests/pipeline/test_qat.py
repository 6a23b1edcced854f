"""`quantize.scheme: qat` through the command line: tuned and static int8 side by side, and only the tuned one ships."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from compress.cli import main
from compress.recipe import loader
from compress.recipe.defaults import resolve

ROOT = Path(__file__).parents[2]
RECIPE = """
data: {source: fashion, limit_train: 300, limit_test: 200, validation: 0.2, augment: none, calibration: 64}
teacher: {candidates: [{model: resnet8, train: {epochs: 1}}]}
student: {model: resnet8}
distill: {method: dhkd, alpha: 0.3, baseline: true}
train: {epochs: 2, lr: 0.05, batch_size: 32}
quantize: {scheme: qat, epochs: 1, per_channel: true, target: [x86-vnni, arm64]}
validate: {repeats: 64, warmup: 2}
require: {max_top1_drop: 100, min_int8_mac_share: 0.9}
"""


def test_epochs_and_rate_follow_from_the_training(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)

    def resolved(*overrides: str) -> tuple[int | None, float | None]:
        found = resolve(loader.load(path, overrides).recipe).quantize
        return found.epochs, found.lr

    assert resolved() == (1, pytest.approx(0.005))
    assert resolved("quantize.epochs=null", "train.epochs=60", "quantize.lr=0.1") == (6, 0.1)
    assert resolved("quantize.epochs=null", "train.epochs=5") == (2, pytest.approx(0.005))
    assert resolved("quantize.scheme=static", "quantize.epochs=null") == (None, None)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("qat")
    (folder / "tiny.yaml").write_text(RECIPE)
    command = ["run", str(folder / "tiny.yaml"), "--artifacts", str(folder / "artifacts")]
    assert main.main(command) in (0, 6)  # 6: on another processor than x86 with VNNI the integer share is not judged
    return (folder / "artifacts" / "runs" / "tiny" / "latest").resolve(), command


@pytest.fixture(scope="module")
def report(run: tuple[Path, list[str]]) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run[0] / "report.json").read_text())
    return content


@pytest.mark.slow
def test_the_report_shows_both(run, report) -> None:
    students = [row for row in report["models"] if row["role"] == "student"]
    assert [(row["file"], row["variant"]) for row in students] == [
        ("student.fp32.onnx", None),
        ("student.int8.onnx", None),
        ("student.static.int8.onnx", "static"),
        ("student.int8.arm64.onnx", None),
    ]
    assert report["ships"]["file"] == "student.int8.onnx" and {row["file"] for row in report["requirements"]} == {
        "student.int8.onnx"
    }
    pairs = {(row["model"], row["against"]): row for row in report["comparisons"]}
    pair = pairs["student.int8.onnx", "student.static.int8.onnx"]
    assert ("student.static.int8.onnx", "student.fp32.onnx") in pairs and (
        "student.static.int8.onnx",
        "teacher.onnx",
    ) in pairs
    tuning = report["tuning"]
    assert (tuning["gain_points"], tuning["mcnemar_p"]) == (-pair["top1_drop_points"], pair["mcnemar_p"])
    assert tuning["epochs"] == 1 and tuning["agreement"] >= 0.98 and "static int8" in tuning["sentence"]
    assert tuning["sentence"].capitalize()[:6] in (run[0] / "report.html").read_text()
    assert report["quantize"]["scheme"] == "qat" and [row["scheme"] for row in report["quantize"]["further"]] == ["qat"]
    shares = {row["file"]: row["int8_mac_share"] for row in students}
    assert shares["student.int8.onnx"] == shares["student.static.int8.onnx"] and shares["student.int8.onnx"] in (
        None,
        pytest.approx(1, abs=0.1),
    )


@pytest.mark.slow
def test_static_int8_is_evidence_and_the_float_student_is_the_distilled_one(run, report) -> None:
    folder = run[0]
    assert {"student.static.int8.onnx", "student.int8.onnx", "student.fp32.onnx", "baseline.int8.onnx"} <= {
        path.name for path in folder.iterdir()
    }
    with zipfile.ZipFile(folder / "bundle.zip") as archive:
        assert not [name for name in archive.namelist() if "static" in name or "baseline" in name]
    assert (folder / "history" / "student-tuning.csv").is_file() and (
        folder / "history" / "baseline-tuning.csv"
    ).is_file()
    assert [part["title"] for part in report["stages"] if part["title"].startswith("tune")] == [
        "tune student",
        "tune student arm64",
        "tune baseline",
    ]


@pytest.mark.slow
def test_a_second_run_tunes_nothing_and_static_alone_trains_nothing(run, report, capsys) -> None:
    _, command = run
    assert main.main([*command, "--until", "quantize"]) == 0
    assert " running" not in capsys.readouterr().out
    assert main.main([*command, "--until", "quantize", "--set", "quantize={scheme: static, target: x86-vnni}"]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.endswith(" running")] == [
        f"{'quantize baseline':<29}running"
    ]
