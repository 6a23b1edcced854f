"""The flagship's shape through the command line, with few images: contract, reuse, verdicts, kill and resume."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.cli import main

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FLAGSHIP = "recipes/mobilenet.yaml"
SMALL = {
    "data.limit_train": 300,
    "data.limit_test": 200,
    "train.epochs": 1,
    "validate.repeats": 64,
    "validate.warmup": 2,
    "teacher.candidates": "[{model: resnet14, train: {epochs: 1}}, {model: resnet8, train: {epochs: 2}}]",
    "require.max_top1_drop": 100,
    "require.min_speedup": 0.01,
    "require.min_compression": 0.01,
}
STAGES = ["data", "teacher", "distill", "strip", "convert", "quantize", "validate", "device"]

# `python -m compress`, noting which stage opens a file that holds test images: an audit hook sees every open.
AUDITED = """
import json, os, runpy, sys
from compress.core.console import Console
stage, opened = "start", []
def note(event, arguments):
    if event == "open" and not isinstance(arguments[0], int):
        name = os.path.basename(os.fsdecode(arguments[0]))
        if name in ("test_images.npy", "test_labels.npy", "fashion_mnist.npz"):
            opened.append([stage, name])
told = Console.stage
def tell(self, name, state, seconds=None):
    global stage
    stage = name
    told(self, name, state, seconds)
Console.stage = tell
sys.addaudithook(note)
record = sys.argv.pop(1)
try:
    runpy.run_module("compress", run_name="__main__", alter_sys=True)
finally:
    json.dump(opened, open(record, "w"))
"""


def arguments(artifacts: Path, *more: str, recipe: str = FLAGSHIP, **changes: Any) -> list[str]:
    keys = {**SMALL, **{name.replace("__", "."): value for name, value in changes.items()}}
    return [
        "run",
        recipe,
        "--artifacts",
        str(artifacts),
        *(part for key, value in keys.items() for part in ("--set", f"{key}={value}")),
        *more,
    ]


def start(*command: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def ran(out: str) -> list[str]:
    return [" ".join(line.split()[:-1]) for line in out.splitlines() if line.endswith(" running")]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="module")
def opened(artifacts: Path) -> list[list[str]]:
    """The first run; answers which stage opened which file of the test split."""
    record = artifacts / "opened.json"
    process = start("-c", AUDITED, str(record), *arguments(artifacts))
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, out + err
    assert "bug:" not in err
    answer: list[list[str]] = json.loads(record.read_text())
    return answer


@pytest.fixture(scope="module")
def run_folder(artifacts: Path, opened: list[list[str]]) -> Path:
    return (artifacts / "runs" / "mobilenet" / "latest").resolve()


@pytest.fixture(scope="module")
def report(run_folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run_folder / "report.json").read_text())
    return content


def test_no_stage_before_validate_opens_the_test_split(opened):
    by_name = {name: {stage for stage, other in opened if other == name} for _, name in opened}
    assert by_name == {
        "fashion_mnist.npz": {"start", "data"},  # hashed, then decoded
        "test_images.npy": {"data", "validate"},
        "test_labels.npy": {"data", "validate"},
    }


def test_the_run_folder_has_the_contracts_paths(run_folder, report):
    for name in (
        "recipe.yaml",
        "resolved.yaml",
        "report.json",
        "report.html",
        "environment.json",
        "log.txt",
        "student.safetensors",
        "student.fp32.onnx",
        "student.int8.onnx",
        "teacher.onnx",
        "predictions.npz",
        "predictions.csv",
        "bundle/manifest.json",
    ):
        assert (run_folder / name).stat().st_size > 0, name
    assert list((run_folder / "plots").iterdir())
    assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{8}", run_folder.name)
    link = run_folder.parent / "latest"
    assert link.is_symlink() and os.readlink(link) == run_folder.name
    assert (run_folder / "recipe.yaml").read_text() == (ROOT / FLAGSHIP).read_text()
    for row in report["models"]:
        content = (run_folder / row["file"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (row["bytes"], row["sha256"])
    with np.load(run_folder / "predictions.npz") as stored:
        assert {f"logits/{row['file']}" for row in report["models"]} <= set(stored)
        labels, logits = stored["labels"], {row["file"]: stored[f"logits/{row['file']}"] for row in report["models"]}
    with (run_folder / "predictions.csv").open(newline="", encoding="utf-8") as stream:
        table = list(csv.DictReader(stream))
    assert [row["path"] for row in table] == [str(number) for number in range(len(labels))]  # fashion has no files
    assert [row["label"] for row in table] == [report["classes"][label] for label in labels]
    for name, values in logits.items():
        said = [row[f"{name} answer"] for row in table]
        assert said == [report["classes"][answer] for answer in values.argmax(axis=1)]
    assert "teacher resnet14" in (run_folder / "log.txt").read_text()


NUMBER, TEXT, COUNT = (int, float), str, int
SHAPE: dict[str, Any] = {
    "schema": COUNT,
    "recipe": TEXT,
    "status": TEXT,
    "teacher": {
        "model": TEXT,
        "top1_validation": float,
        "params": COUNT,
        "macs": COUNT,
        "candidates": [{"model": TEXT, "top1_validation": float, "chosen": bool}],
    },
    "student": {"model": TEXT, "params": COUNT, "macs": COUNT, "dropped": [TEXT], "epochs": COUNT},
    "models": [
        {
            "role": TEXT,
            "precision": TEXT,
            "file": TEXT,
            "sha256": TEXT,
            "bytes": COUNT,
            "images": COUNT,
            "top1": float,
            "top1_ci95": [float],
            "top5": float,
            "agreement_with_teacher": float,
            "max_abs_diff_from_torch": (float, type(None)),
            "latency_ms": {
                "p50": float,
                "p90": float,
                "p99": type(None),
                "runs": COUNT,
                "threads": COUNT,
                "batch": COUNT,
            },
            "first_run_ms": float,
            "load_ms": float,
            "peak_memory_bytes": (int, type(None)),
            "int8_mac_share": float,
            "target": (str, type(None)),
        }
    ],
    "comparisons": [
        {
            "model": TEXT,
            "against": TEXT,
            "top1_drop_points": float,
            "top1_drop_ci95": [float],
            "mcnemar_p": float,
            "speedup_p50": float,
            "size_ratio": float,
        }
    ],
    "device": [
        {
            "target": TEXT,
            "file": TEXT,
            "sha256": TEXT,
            "precision": TEXT,
            "host": TEXT,
            "cpu": TEXT,
            "onnxruntime": TEXT,
            "top1": float,
            "agreement": float,
            "max_abs_diff": float,
            "latency_ms": {"p50": float},
        }
    ],
    "requirements": [
        {
            "name": TEXT,
            "target": TEXT,
            "file": TEXT,
            "limit": NUMBER,
            "value": NUMBER,
            "ci95": (list, tuple, type(None)),
            "verdict": TEXT,
        }
    ],
    "seconds": {"teacher": float, "distill": float},
    "reused": [TEXT],
    "environment": {},
}


def check(value: Any, shape: Any, where: str = "report") -> None:
    if isinstance(shape, dict):
        assert isinstance(value, dict), where
        for key, inner in shape.items():
            assert key in value, f"{where}.{key}"
            check(value[key], inner, f"{where}.{key}")
    elif isinstance(shape, list):
        assert isinstance(value, list), where
        for number, item in enumerate(value):
            check(item, shape[0], f"{where}[{number}]")
    else:
        assert isinstance(value, shape) and (shape is bool or not isinstance(value, bool)), f"{where}: {value!r}"


def test_report_json_is_as_in_the_contract(report):
    check(report, SHAPE)
    assert (report["schema"], report["recipe"], report["status"]) == (1, "mobilenet", "passed")
    assert [(row["role"], row["precision"]) for row in report["models"]] == [
        ("teacher", "fp32"),
        ("student", "fp32"),
        ("student", "int8"),
    ]
    assert [row["file"] for row in report["models"]] == ["teacher.onnx", "student.fp32.onnx", "student.int8.onnx"]
    assert {row["images"] for row in report["models"]} == {200}
    assert [row["chosen"] for row in report["teacher"]["candidates"]].count(True) == 1 and report["teacher"]["reason"]
    assert (
        len(report["student"]["dropped"]) == 9
        and report["student"]["epochs"] == 1
        and report["student"]["teacher_rows"] == 270
    )
    assert report["student"]["kernels"]
    assert {row["name"]: row["verdict"] for row in report["requirements"]} == dict.fromkeys(
        ("max_top1_drop", "min_speedup", "min_compression"), "passed"
    )
    assert {row["file"] for row in report["device"]} == {"teacher.onnx", "student.fp32.onnx", "student.int8.onnx"}
    assert list(report["seconds"]) == STAGES and report["reused"] == []
    assert report["distillation"]["sentence"] and len(report["baseline"]["models"]) == 2


def test_a_second_run_executes_no_stage(artifacts, run_folder, report, capsys):
    code = main.main(arguments(artifacts, "--json"))
    out, err = capsys.readouterr()
    assert code == 0, err
    assert ran(err) == [] and sum(line.endswith(" reused") for line in err.splitlines()) == len(report["stages"])
    again = json.loads(out)
    assert again["reused"] == STAGES and all(part["reused"] for part in again["stages"])
    assert again["models"] == report["models"] and again["seconds"] == report["seconds"]
    latest = (artifacts / "runs" / "mobilenet" / "latest").resolve()
    assert latest != run_folder and json.loads((latest / "report.json").read_text()) == again
    assert (latest / "student.safetensors").read_bytes() == (run_folder / "student.safetensors").read_bytes()


def test_the_resolved_recipe_runs_from_the_run_folder(artifacts, run_folder, report, capsys):
    assert report["command"].startswith(f"compress run {FLAGSHIP} --set ")
    assert (
        main.main(["run", str(run_folder / "resolved.yaml"), "--artifacts", str(artifacts), "--until", "quantize"]) == 0
    )
    out = capsys.readouterr().out
    assert ran(out) == [] and out.count(" reused\n") == len(
        [part for part in report["stages"] if part["title"].split()[0] in STAGES[:6]]
    )


@pytest.mark.parametrize("verdict", [5, 6])
def test_another_requirement_measures_nothing_again(artifacts, report, verdict, capsys):
    top1 = report["models"][2]["top1"]
    code = main.main(arguments(artifacts, require__min_top1=0.999 if verdict == 5 else top1))
    out = capsys.readouterr().out
    assert code == verdict and ran(out) == []
    said = "failed     min_top1: " if verdict == 5 else "undecided  min_top1: "
    assert said in out and ("mobilenet.yaml:" in out or "--set require.min_top1" in out)


def test_another_calibration_retrains_nothing(artifacts, report, capsys):
    assert main.main(arguments(artifacts, "--until", "quantize", data__calibration=100)) == 0
    assert ran(capsys.readouterr().out) == ["quantize student", "quantize baseline"]


def test_until_teacher_stops_there_and_the_table_is_shown(artifacts, report, capsys):
    before = sorted((artifacts / "runs" / "mobilenet").iterdir())
    assert main.main(arguments(artifacts, "--until", "teacher")) == 0
    out = capsys.readouterr().out
    assert "stopped after teacher, as asked" in out and "distill" not in out
    assert main.main(["teachers", *arguments(artifacts)[1:]]) == 0
    rows = [
        line
        for line in capsys.readouterr().out.splitlines()
        if re.search(r"resnet(8|14) .*%", line) and "trained here" in line
    ]
    assert len(rows) == 2 and sum(row.startswith("*") for row in rows) == 1
    assert sorted((artifacts / "runs" / "mobilenet").iterdir()) == before


def test_until_with_json_says_what_was_run(artifacts, report, capsys):
    assert (
        main.main(arguments(artifacts, "--until", "distill", "--json", train__seed=1, distill__baseline="false")) == 0
    )
    said = json.loads(capsys.readouterr().out)
    parts = {part["title"]: part["reused"] for part in said.pop("stages")}
    assert parts == {"data": True, "teacher resnet14": True, "teacher resnet8": True, "distill": False}
    seconds = said.pop("seconds")
    assert list(seconds) == STAGES[:3] and seconds["teacher"] == report["seconds"]["teacher"] and seconds["distill"] > 0
    assert said == {"schema": 1, "recipe": "mobilenet", "until": "distill", "reused": ["data", "teacher"]}


def test_two_candidates_of_one_network_are_told_apart(artifacts, report, capsys):
    twice = "[{model: resnet14, train: {epochs: 1}}, {model: resnet14, train: {epochs: 1, seed: 1}}]"
    assert main.main(arguments(artifacts, "--until", "teacher", teacher__candidates=twice)) == 0
    out = capsys.readouterr().out
    assert ran(out) == ["teacher resnet14 2"] and re.search(r"teacher resnet14 1 +reused", out)


def test_verify_report_and_compare(artifacts, run_folder, report, capsys):
    assert main.main(["verify", str(run_folder), "--artifacts", str(artifacts)]) == 0
    assert "student.int8.onnx: agreement 1.0000 on 64 images" in capsys.readouterr().out
    merged = json.loads((run_folder / "report.json").read_text())
    assert [row["file"] for row in merged["device"]] == [row["file"] for row in report["device"]] and merged[
        "models"
    ] == report["models"]
    (run_folder / "report.html").unlink()
    assert main.main(["report", str(run_folder)]) == 0
    assert (
        capsys.readouterr().out.strip() == str(run_folder / "report.html")
        and (run_folder / "report.html").stat().st_size > 10_000
    )
    assert main.main(["compare", "mobilenet", str(run_folder), "--artifacts", str(artifacts)]) == 0
    assert "mobilenet" in capsys.readouterr().out


def test_a_changed_bundle_is_refused(artifacts, run_folder, report, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run_folder, copy)
    content = bytearray((copy / "bundle.zip").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (copy / "bundle.zip").write_bytes(bytes(content))
    assert main.main(["verify", str(copy)]) == 4
    assert "bundle.zip is damaged" in capsys.readouterr().err
    (copy / "bundle.zip").unlink()
    assert main.main(["verify", str(copy)]) == 3
    assert main.main(["verify", str(run_folder), "--target", "http://nowhere"]) == 2


# --- killed and interrupted


def distilling(artifacts: Path) -> list[str]:
    return arguments(artifacts, "--until", "strip", train__epochs=6, train__threads=1, distill__baseline="false")


def wait_for(artifacts: Path, process: subprocess.Popen[str], newer_than: int) -> int:
    """Until the student's training has written a checkpoint after `newer_than` (ns); its time."""
    for _ in range(3000):
        for path in artifacts.glob("cache/distill/*.partial/checkpoint.pt"):
            if path.stat().st_mtime_ns > newer_than:
                return path.stat().st_mtime_ns
        assert process.poll() is None, "the training ended before it could be stopped"
        time.sleep(0.02)
    raise AssertionError("no checkpoint")


def student_of(artifacts: Path) -> str:
    (path,) = artifacts.glob("cache/strip/*/student.safetensors")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_interrupted_and_killed_runs_end_with_the_same_student(artifacts, report, tmp_path, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for place in (whole, parts):  # the teachers are there already, what they said is not
        for stage in ("data", "teacher"):
            shutil.copytree(artifacts / "cache" / stage, place / "cache" / stage)
    assert main.main(distilling(whole)) == 0, capsys.readouterr().err

    process = start("-m", "compress", *distilling(parts))
    written = wait_for(parts, process, 0)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.search(
        r"interrupted in epoch \d of 6, checkpoint kept; run the same command again to resume: compress run recipes",
        err,
    )

    process = start("-m", "compress", *distilling(parts))
    wait_for(
        parts,
        process,
        max(written, *(path.stat().st_mtime_ns for path in parts.glob("cache/distill/*.partial/checkpoint.pt"))),
    )
    process.kill()
    process.communicate(timeout=60)
    assert not list(parts.glob("cache/distill/*/stage.json")) and not list(parts.glob("cache/strip/*/stage.json"))

    capsys.readouterr()
    assert main.main(distilling(parts)) == 0, capsys.readouterr().err
    assert ran(capsys.readouterr().out) == ["distill", "strip"]
    assert student_of(parts) == student_of(whole)
