"""What a run in a folder of its own says: its command, its report's path, and what a device's answer ends with."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

from compress.cli import main
from export.graph.layers import layers

pytestmark = pytest.mark.slow

RECIPE = """
data: {source: fashion, limit_train: 100, limit_test: 60, validation: 0.3, calibration: 32}
teacher: {candidates: [{model: resnet8, train: {epochs: 1}}]}
student: {model: mobilenet_v2, width: 0.5}
distill: {method: none}
train: {epochs: 1}
validate: {repeats: 16, warmup: 2, threads: 2}
device: {samples: 16}
require: {max_top1_drop: 100, max_memory_bytes: 1}
"""
CROWDED = "warning: 2 threads on 1 core interrupt each other; lower validate.threads"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[str]]]:
    """The folder and what the run said; the working folder, too."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "tiny.yaml").write_text(RECIPE)
    (folder / "elsewhere").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("export.runtime.conditions._allowed", lambda: [0])
        patch.setattr("compress.core.console.Console.warn", lambda self, text: self.line(f"warning: {text}"))
        lines: list[str] = []
        patch.setattr("compress.core.console.print_line", lambda text, stream: lines.append(text))
        assert (
            main.main(
                ["run", "tiny.yaml", "--artifacts", "elsewhere/../A", "--device", "cpu", "--set", "train.epochs=1"]
            )
            == 5
        ), lines
        yield folder, lines


def report(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "A/runs/tiny/latest/report.json").read_text())
    return content


def test_the_command_finds_the_same_results(project: tuple[Path, list[str]]) -> None:
    folder, _ = project
    command = report(folder)["command"]
    assert command == "compress run tiny.yaml --set train.epochs=1 --artifacts elsewhere/../A --device cpu"
    assert command in (folder / "A/runs/tiny/latest/report.html").read_text()
    assert main.main(shlex.split(command)[1:]) == 5
    assert report(folder)["reused"]


def test_its_path_is_said_without_detours_and_a_devices_answer_ends_as_the_run(project: tuple[Path, list[str]]) -> None:
    folder, lines = project
    run = (folder / "A/runs/tiny/latest").resolve()
    assert re.fullmatch(rf"failed: 1 of 2 requirements met; report: {run.parent}/[^/]+/report.html", lines[-1])
    for given in ("tiny", "elsewhere/../A/runs/tiny/latest"):
        assert main.main(["verify", given, "--artifacts", "elsewhere/../A", "--target", "local", "-q"]) == 5
        assert lines[-1] == f"failed: 1 of 2 requirements met; report: {run}/report.html"


def test_every_layer_of_its_file_may_be_named(project: tuple[Path, list[str]]) -> None:
    folder, lines = project
    names = [node.name for node in layers(onnx.load(str(folder / "A/runs/tiny/latest/student.fp32.onnx")))]
    wanted = f"quantize.float_layers=[{', '.join(names)}]"
    assert main.main(["check", "tiny.yaml", "--set", wanted]) == 0, lines[-1]


def test_too_many_threads_are_said_before_they_are_timed(project: tuple[Path, list[str]]) -> None:
    folder, lines = project
    assert lines.index(CROWDED) < next(
        number for number, line in enumerate(lines) if line.startswith("validate") and line.endswith("running")
    )
    assert CROWDED.removeprefix("warning: ") in report(folder)["warnings"]
