"""A recipe that names another device: the verdict by that device's answer, from a real OpenSSH server on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compress.cli import main
from export.runtime import isa
from tests.support.sshd import Server, start, stop

pytestmark = pytest.mark.slow

RECIPE = """
name: tiny
data: {source: fashion, limit_train: 100, limit_test: 60, validation: 0.3, calibration: 32}
teacher: {candidates: [{model: resnet8, train: {epochs: 1}}]}
student: {model: resnet8}
distill: {method: none}
train: {epochs: 1}
validate: {repeats: 64, warmup: 2}
device: {target: "%s", samples: 16}
require: {max_top1_drop: 100, max_latency_ms: 1000, min_speedup: 0.001, min_int8_speedup: 0.001,
          max_memory_bytes: 2_000_000_000}
"""
TIMED = {"max_latency_ms", "min_speedup", "min_int8_speedup", "max_memory_bytes"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("distant")


@pytest.fixture(scope="module")
def stopped(folder: Path) -> Server:
    """A server that was there once: its keys and its port."""
    (folder / "sshd").mkdir()
    process, server = start(folder / "sshd")
    stop(process)
    return server


@pytest.fixture
def server(stopped: Server) -> Iterator[Server]:
    process, server = start(stopped.folder, port=stopped.port)
    yield server
    stop(process)


@pytest.fixture(scope="module")
def name(folder: Path, stopped: Server) -> str:
    """The device as reports name it."""
    target = stopped.name(folder / "device")
    (folder / "tiny.yaml").write_text(RECIPE % target)
    return target.partition("?")[0]


def compress(folder: Path, *arguments: str) -> int:
    recipe = [str(folder / "tiny.yaml")] if arguments[0] == "run" else ["tiny"]
    return main.main([arguments[0], *recipe, "--artifacts", str(folder / "artifacts"), *arguments[1:]])


def report_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "artifacts/runs/tiny/latest/report.json").read_text())
    return content


def verdicts(content: dict[str, Any]) -> dict[tuple[str, str], str]:
    return {(row["name"], row["target"]): row["verdict"] for row in content["requirements"]}


@pytest.fixture(scope="module")
def unreached(folder: Path, name: str) -> dict[str, Any]:
    """The report of a run whose device was out of reach."""
    assert compress(folder, "run", "--set", f"quantize.target={isa()}") == 3
    return report_of(folder)


def test_auto_asks_the_device_before_anything_is_trained(folder, name, capsys):
    assert compress(folder, "run") == 3

    said = capsys.readouterr()
    assert "running" not in "".join(line for line in said.out.splitlines() if line.startswith(("teacher", "distill")))
    assert f"auto is the instruction set of {name}, which gave no answer ({name} cannot be reached" in said.err
    assert said.err.rstrip().endswith("--set quantize.target=arm64 (or x86-vnni, x86-avx2)")


def test_a_device_out_of_reach_loses_nothing_and_passes_nothing(folder, name, unreached, capsys):
    assert (
        unreached["status"] == "undecided" and unreached["device"] == [] and unreached["named_device"]["target"] == name
    )
    assert verdicts(unreached) == {
        ("max_top1_drop", "local"): "passed",
        **dict.fromkeys(((limit, name) for limit in TIMED), "not judged"),
    }
    for row in unreached["requirements"]:
        assert (
            row["file"] == "student.int8.onnx"
            and len(row["sha256"]) == 64
            and row["precision"] == "int8"
            and row["where"].count(":") == 2
        )
    assert all(row["latency_ms"]["p50"] > 0 for row in unreached["models"])  # this machine's, which judge nothing

    assert compress(folder, "run", "--set", f"quantize.target={isa()}") == 3
    said = capsys.readouterr()
    assert "reused" in said.out and [
        line.split()[0] for line in said.out.splitlines() if line.endswith(" running")
    ] == ["device"]
    *chance, sentence = said.err.splitlines()
    assert all(
        "is not shown to be better than always naming" in line for line in chance
    )  # so small networks are warned of
    assert sentence.endswith(f"to go on: compress verify tiny --artifacts {folder}/artifacts")
    assert compress(folder, "verify") == 3 and report_of(folder)["status"] == "undecided"
    assert not (folder / "artifacts/runs/tiny/latest/device").exists()


def test_verify_asks_the_recipes_device_and_judges_again(folder, name, unreached, server, capsys):
    assert compress(folder, "verify") == 0

    merged = report_of(folder)
    assert merged["status"] == "passed" and verdicts(merged) == {
        ("max_top1_drop", "local"): "passed",
        **{(limit, name): "passed" for limit in TIMED},
    }
    assert {row["target"] for row in merged["device"]} == {name} and merged["named_device"]["failure"] is None
    (int8,) = [row for row in merged["device"] if row["precision"] == "int8"]
    assert (
        int8["photo_latency_ms"]["p50"] > int8["latency_ms"]["p50"]
        and "drawn photos" in int8["photo_to_answer"]
        and int8["sustained"] is None
    )
    assert f"on {name}" in merged["int8_against_float"]["sentence"]
    assert f"passed     max_latency_ms on {name}" in capsys.readouterr().out


def test_a_run_without_a_pause_on_the_device_is_in_the_report(folder, name, unreached, server):
    assert compress(folder, "verify", "--sustained", "1") == 0

    found = {row["file"]: row["sustained"] for row in report_of(folder)["device"]}
    assert (
        found["student.int8.onnx"]["runs"] > 10 and found["student.fp32.onnx"] is None and found["teacher.onnx"] is None
    )
    assert (
        found["student.int8.onnx"]["sentence"][:30] in (folder / "artifacts/runs/tiny/latest/report.html").read_text()
    )


def test_this_machine_cannot_stand_in_for_the_device(folder, name, unreached, capsys):
    assert compress(folder, "run", "--set", f"quantize.target={isa()}") == 3  # a report without the device's answer
    assert compress(folder, "verify", "--target", "local") == 6

    merged = verdicts(report_of(folder))
    assert {merged[limit, name] for limit in TIMED} == {"not judged"} and {
        merged[limit, "local"] for limit in TIMED
    } == {"passed"}


def test_a_run_asks_the_device_each_time(folder, name, unreached, server, capsys):
    for _ in range(2):
        assert compress(folder, "run") == 0  # auto is what the device says: the file of before
        assert [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.endswith(" running")] == [
            "device"
        ]
    content = report_of(folder)
    assert content["status"] == "passed" and {row["target"] for row in content["device"]} == {name}
    assert {row["target"] for row in content["requirements"] if row["name"] in TIMED} == {name}


def test_a_file_for_another_architecture_is_not_timed_there(folder, name, unreached, server):
    other = "arm64" if isa() != "arm64" else "x86-vnni"
    assert compress(folder, "run", "--set", f"quantize.target={other}") == 6

    content = report_of(folder)
    rows = [row for row in content["requirements"] if row["target"] == name]
    assert {row["verdict"] for row in rows} == {"not judged"} and {row["name"] for row in rows} == TIMED
    assert all(
        f"(the bundle's int8 file is built for {other} and {name} is {isa()})" in row["sentence"] for row in rows
    )
    int8 = next(row for row in content["device"] if row["precision"] == "int8")
    assert int8["latency_ms"] is None and int8["agreement"] > 0.5 and content["models"][-1]["top1"] > 0


def test_one_file_for_each_target_in_the_run_the_bundle_and_the_package(folder, name, unreached, server):
    other = "arm64" if isa() != "arm64" else "x86-vnni"
    assert compress(folder, "run", "--set", f"quantize.target=[{other}, auto]", "--set", "export.ort=true") == 0

    latest, content = folder / "artifacts/runs/tiny/latest", report_of(folder)
    files = {"student.int8.onnx": isa(), f"student.int8.{other}.onnx": other}
    rows = {row["file"]: row for row in content["models"]}
    assert (
        {file: rows[file]["target"] for file in files}
        == files
        == {row["file"]: row["built_for"] for row in content["device"] if row["built_for"]}
    )
    assert {row["file"] for row in content["requirements"]} == {"student.int8.onnx"} and content["ships"][
        "file"
    ] == "student.int8.onnx"
    away = rows[f"student.int8.{other}.onnx"]
    assert (
        away["latency_ms"] is None
        and away["note"].startswith(f"built for {other}, this machine is {isa()}")
        and away["top1"] > 0
    )
    assert (
        away["int8_mac_share"] is None
        and rows["student.int8.onnx"]["int8_mac_share"] > 0
        and rows["student.int8.onnx"]["note"] is None
    )
    assert {extra["file"]: extra["target"] for extra in content["package"] if extra["kind"] == "ort"} == {
        "student.fp32.ort": isa(),
        "student.int8.ort": isa(),
        f"student.int8.{other}.ort": other,
    }
    assert all(
        (latest / part).is_file() for file in files for part in (file, f"bundle/{file}", file.replace(".onnx", ".ort"))
    )
    assert [one["target"] for one in content["quantize"]["further"]] == [other]


def test_keep_faster_is_decided_by_the_devices_times(folder, name, unreached, server, capsys):
    assert compress(folder, "run", "--set", "quantize.keep=faster") == 0

    content = report_of(folder)
    int8 = next(row for row in content["device"] if row["precision"] == "int8")
    faster = int8["speedup_over"]["student.fp32.onnx"][1] > 1
    assert (
        content["ships"]["file"] == ("student.int8.onnx" if faster else "student.fp32.onnx")
        and f" on {name} (" in content["ships"]["sentence"]
    )
    assert {row["file"] for row in content["requirements"]} == {content["ships"]["file"]}
    assert (folder / "artifacts/runs/tiny/latest/student.int8.onnx").is_file() is faster
    assert content["ships"]["sentence"] in capsys.readouterr().out
    assert compress(folder, "verify") == 0


@pytest.mark.extended
def test_the_student_is_picked_by_the_devices_time_and_a_plan_is_judged_there(folder, name, server, stopped, capsys):
    options = "{choose: {max_latency_ms: 1000, from: [{model: resnet8}, {model: resnet14}]}}"
    chosen = (
        (folder / "tiny.yaml")
        .read_text()
        .replace("{model: resnet8}\ndistill", f"{options}\ndistill")
        .replace("tiny", "chosen")
    )
    (folder / "chosen.yaml").write_text(chosen)

    assert main.main(["plan", str(folder / "chosen.yaml"), "--artifacts", str(folder / "artifacts"), "--json"]) == 0

    plan = json.loads(capsys.readouterr().out)
    assert (
        plan["choose"]["chosen"] == "resnet14"
        and f"within 1,000 ms on {name}" in plan["choose"]["sentence"]
        and plan["device"] == name
    )
    judged = {row["name"]: (row["target"], row["verdict"]) for row in plan["requirements"]}
    assert judged == {limit: (name, "passed") for limit in TIMED}
    assert any(path.name == "bundle-plan" for path in (folder / "device").iterdir())  # it ran there

    stop_server = main.main(
        [
            "plan",
            str(folder / "chosen.yaml"),
            "--artifacts",
            str(folder / "elsewhere"),
            "--set",
            "device.target=ssh://nobody@127.0.0.1:1",
        ]
    )
    assert stop_server == 3 and "cannot be reached" in capsys.readouterr().err
