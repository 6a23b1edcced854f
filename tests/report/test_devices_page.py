"""The page says what each device answered, what was not judged and why, and which images flipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compress.report.formats import chance
from compress.report.page import render
from tests.support import report_example as example


@pytest.fixture
def run(tmp_path: Path) -> Path:
    example.build(tmp_path / "run", n=400)
    return tmp_path / "run"


def page(folder: Path, **keys: Any) -> str:
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    (folder / "report.json").write_text(json.dumps(report | keys))
    return render(folder).read_text(encoding="utf-8")


def answer(**more: Any) -> dict[str, Any]:
    conditions = {
        "threads": 1,
        "spinning": False,
        "governor": "ondemand",
        "cpu_features": ["asimd", "asimddp"],
        "rounds": 20,
        "attempts": 2,
        "other_cores": 0.013,
        "drift": 1.0,
    }
    return {
        "target": "ssh://pi",
        "file": "student.int8.onnx",
        "role": "student",
        "precision": "int8",
        "built_for": "arm64",
        "isa": "arm64",
        "latency_ms": {"p50": 3.21},
        "speedup_over": {"teacher.onnx": [4.5, 4.4, 4.6]},
        "first_run_ms": 9.87,
        "load_ms": 54.3,
        "peak_memory_bytes": 61_000_000,
        "conditions": conditions,
        "photo_to_answer": "7.1 ms, 8 drawn photos",
        "sustained": {"sentence": "After 600 s it is 12% slower"},
        **more,
    }


def test_a_devices_times_and_their_conditions(run: Path) -> None:
    text = page(run, device=[answer()], named_device={"target": "ssh://pi", "failure": None})

    for said in (
        "9.87 ms",
        "54.3 ms",
        "61.0 MB",
        "7.1 ms, 8 drawn photos",
        "After 600 s it is 12% slower",
        "4.50\u00d7 faster",
        "an image on ssh://pi",
        "1 thread, not spinning; 20 rounds in 2 attempts; clock governor ondemand; others used 0.01 cores; "
        "asimd, asimddp",
    ):
        assert said in text


def test_what_a_device_says_of_all_files_stands_once_the_rest_side_by_side(run: Path) -> None:
    teacher = answer(cpu="Cortex-A76", file="teacher.onnx", precision="fp32", load_ms=11.1, photo_to_answer=None)
    both = [teacher, answer(cpu="Cortex-A76"), answer(target="browser", cpu="wasm")]
    text = page(run, device=both).split('id="device"')[1].split("</section>")[0]

    assert text.count("Cortex-A76") == 1 and text.count("<h3>") == 2 and "<h3>browser, student.int8.onnx</h3>" in text
    assert '<th scope="col">teacher.onnx</th><th scope="col">student.int8.onnx</th>' in text
    assert '<th scope="row">Load</th><td>11.1 ms</td><td>54.3 ms</td>' in text and text.count("9.87 ms") == 2
    assert (
        "<dt>Photo to answer, student.int8.onnx</dt>" in text and "<dt>Photo to answer, teacher.onnx</dt>" not in text
    )


def test_a_device_that_gave_no_answer_is_named_and_this_machine_does_not_stand_in(run: Path) -> None:
    text = page(run, device=[], named_device={"target": "ssh://pi", "failure": "ssh://pi cannot be reached"})

    assert "gave no good answer: ssh://pi cannot be reached." in text
    assert "<dt>Speed</dt><dd>not measured<small>on ssh://pi</small></dd>" in text


def test_flips_and_mcnemars_p_against_teacher_and_float_student(run: Path) -> None:
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    text = page(run)

    pairs = {(pair["model"], pair["against"]): pair for pair in report["comparisons"]}
    for against in ("teacher.onnx", "student.fp32.onnx"):
        pair = pairs["student.int8.onnx", against]
        assert f"{pair['lost']} / {pair['gained']}<small>p {chance(pair['mcnemar_p'])}</small>" in text
    assert "Drop against float student, points" in text
