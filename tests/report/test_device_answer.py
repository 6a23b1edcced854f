"""A device's answer changes the limits on time and memory, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from compress.recipe.schema import Require
from compress.report.device_answer import merge
from compress.report.schema import DeviceRow, Report
from compress.verdict import device_requirements

REQUIRE = Require(max_top1_drop=2.0, max_latency_ms=3.0, min_speedup=2.0, min_int8_speedup=1.0, max_memory_bytes=100)


def requirement(name: str, verdict: str, target: str = "local") -> dict[str, Any]:
    return {
        "name": name,
        "target": target,
        "file": "s.onnx",
        "limit": 1.0,
        "value": 1.0,
        "ci95": [0.5, 1.5],
        "verdict": verdict,
        "where": f"r.yaml:{len(name)}:1",
        "sentence": ".",
    }


def content(timed: str = "passed") -> Report:
    rows = [requirement("max_top1_drop", "passed"), *(requirement(name, timed) for name in device_requirements.LIMITS)]
    models = [
        {"file": "t.onnx", "role": "teacher", "precision": "fp32"},
        {"file": "s.onnx", "role": "student", "precision": "fp32"},
        {"file": "s.int8.onnx", "role": "student", "precision": "int8"},
    ]
    known = {"models": models, "device": [{"target": "local"}], "requirements": rows, "status": "passed"}
    return Report.model_validate(known)


def row(file: str, role: str, precision: str, **more: Any) -> DeviceRow:
    latency = {"p50": 2.0, "p50_ci95": [1.9, 2.1], "runs": 700}
    known = {
        "target": "ssh://pi",
        "file": file,
        "sha256": "0",
        "role": role,
        "precision": precision,
        "built_for": None,
        "isa": "arm64",
        "ok": True,
        "latency_ms": latency,
        "speedup_over": {"t.onnx": [2.5, 2.4, 2.6], "s.onnx": [1.2, 1.1, 1.3]},
        "peak_memory_bytes": 90,
        "contaminated": False,
        "not_timed": None,
        **more,
    }
    return DeviceRow.model_validate(known)


def answer(**more: Any) -> tuple[DeviceRow, ...]:
    other = {"built_for": "x86-vnni", "ok": None, "latency_ms": None, "speedup_over": {}, "peak_memory_bytes": None}
    return (
        row("t.onnx", "teacher", "fp32"),
        row("s.onnx", "student", "fp32"),
        row("s.int8.onnx", "student", "int8", **other),
        row("s.int8.arm64.onnx", "student", "int8", built_for="arm64", **more),
    )


def judged(merged: Report, target: str) -> dict[str, str]:
    return {one.name: one.verdict for one in merged.requirements if one.target == target}


def test_the_file_built_for_the_device_is_judged_there() -> None:
    merged = merge(content(), REQUIRE, answer(), "ssh://pi")

    assert (
        judged(merged, "ssh://pi") == dict.fromkeys(device_requirements.LIMITS, "passed") and merged.status == "passed"
    )
    assert {one.file for one in merged.requirements if one.target == "ssh://pi"} == {"s.int8.arm64.onnx"}
    assert judged(merged, "local") == {"max_top1_drop": "passed", **dict.fromkeys(device_requirements.LIMITS, "passed")}
    assert {one.where for one in merged.requirements if one.name == "min_speedup"} == {"r.yaml:11:1"}
    assert [one.target for one in merged.device] == ["local"] + ["ssh://pi"] * 4


def test_a_slow_device_fails_and_a_second_answer_replaces_the_first() -> None:
    ratios = {"t.onnx": [2.0, 1.9, 2.1], "s.onnx": [0.9, 0.8, 0.95]}
    slow = {
        "latency_ms": {"p50": 9.0, "p50_ci95": [8.0, 10.0], "runs": 700},
        "peak_memory_bytes": 101,
        "speedup_over": ratios,
    }
    failed = merge(content(), REQUIRE, answer(**slow), "ssh://pi")
    again = merge(failed, REQUIRE, answer(), "ssh://pi")

    assert judged(failed, "ssh://pi") == {
        "max_latency_ms": "failed",
        "min_speedup": "undecided",
        "min_int8_speedup": "failed",
        "max_memory_bytes": "failed",
    }
    assert failed.status == "failed" and again.status == "passed"
    assert len(again.requirements) == len(failed.requirements) and len(again.device) == len(failed.device)


def test_what_this_machine_could_not_judge_the_device_judges() -> None:
    merged = merge(content("not judged"), REQUIRE, answer(), "ssh://pi")

    assert merged.status == "passed" and judged(merged, "local") == {"max_top1_drop": "passed"}


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (answer()[:3], "the bundle's int8 file is built for x86-vnni and ssh://pi is arm64"),
        (
            answer(latency_ms=None, speedup_over={}, peak_memory_bytes=None, not_timed="emulated"),
            "ssh://pi was not timed (emulated)",
        ),
    ],
)
def test_without_the_devices_numbers_nothing_is_passed(rows: tuple[DeviceRow, ...], why: str) -> None:
    merged = merge(content(), REQUIRE, rows, "ssh://pi")

    assert (
        judged(merged, "ssh://pi") == dict.fromkeys(device_requirements.LIMITS, "not judged")
        and merged.status == "undecided"
    )
    assert why in next(
        one.sentence for one in merged.requirements if one.target == "ssh://pi" and one.name == "max_latency_ms"
    )
