"""Runs by 0.1.0 (fixtures/) still render, compare and verify."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from compress.commands.verify import verify
from compress.core.console import Console
from compress.report.compare import compare
from compress.report.page import render
from compress.report.read import read_report

FIXTURES = Path(__file__).parent / "fixtures"
RUNS = sorted(path.parent for path in FIXTURES.glob("*/report.json"))


def copy(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder / run.name))


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_it_renders_with_every_section(run: Path, tmp_path: Path) -> None:
    folder = copy(run, tmp_path)
    text = render(folder).read_text(encoding="utf-8")

    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    sections = re.findall(r'<section id="(\w+)"', text)
    names = "verdict requirements distillation models latency int8 teacher training slices classes pictures"
    without = {"distillation"} if report["baseline"] is None else set()
    expected = f"{names} understanding device warnings repeat".split()
    assert sections == [name for name in expected if name not in without and (name != "warnings" or report["warnings"])]
    assert "Passed" in text and "None" not in re.sub(r"<svg.*?</svg>|<style.*?</style>", "", text, flags=re.DOTALL)
    for row in report["models"]:
        assert f"{100 * row['top1']:.2f} %" in text and row["sha256"] in text
    for row in report["requirements"]:
        assert row["sentence"].replace("-", "\u2212") in html.unescape(text).replace("-", "\u2212")


def test_they_compare() -> None:
    lines = compare(RUNS).splitlines()

    assert lines[0].split() == ["mobilenet", "shufflenet"]
    assert next(line for line in lines if line.startswith("top-1")).split() == ["top-1", "87.44", "%", "88.08", "%"]
    assert "do not compare" not in lines[-1]


def test_a_device_s_answer_is_merged_and_the_rest_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy(FIXTURES / "mobilenet-0.1.0", tmp_path)
    before = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    (folder / "bundle.zip").write_bytes(b"")
    answer: dict[str, Any] = json.loads((folder / "device-answer.json").read_text(encoding="utf-8"))
    monkeypatch.setattr("compress.stages.support.device_session.ask", lambda *_, **__: answer)

    report = verify(folder, target="local", console=Console(quiet=True))

    assert read_report(folder) == report and report.status == "passed"
    after = report.to_json()
    assert list(after) == list(before)
    assert {key for key in before if before[key] != after[key]} <= {"device", "requirements"}
    assert [row["file"] for row in after["device"]] == [row["file"] for row in before["device"]]
    assert [row["name"] for row in after["requirements"]] == [row["name"] for row in before["requirements"]]
