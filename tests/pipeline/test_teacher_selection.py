"""`teacher.select: proxy` through the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.cli import main
from compress.core.errors import RecipeError
from compress.recipe import loader

ROOT = Path(__file__).parents[2]
FLAGSHIP = str(ROOT / "recipes" / "mobilenet.yaml")
SMALL = {
    "data.limit_train": 300,
    "data.limit_test": 200,
    "teacher.select": "proxy",
    "teacher.proxy.epochs": 1,
    "teacher.proxy.share": 0.5,
    "teacher.candidates": "[{model: resnet8, train: {epochs: 1}}, {model: resnet8, train: {epochs: 2}}]",
    "train.precision": "float32",
}


def sets(**changes: object) -> list[str]:
    keys = {**SMALL, **{name.replace("__", "."): value for name, value in changes.items()}}
    return [part for key, value in keys.items() for part in ("--set", f"{key}={value}")]


@pytest.mark.slow
def test_the_table_has_both_rankings_and_a_second_time_nothing_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["teachers", FLAGSHIP, *sets(), "--artifacts", str(tmp_path), "--device", "cpu"]
    assert main.main(arguments) == 0
    said = capsys.readouterr().out
    assert "proxy resnet8 1" in said and "proxy resnet8 2" in said and "rank by proxy" in said
    chosen = [line for line in said.splitlines() if line.startswith("*")]
    assert len(chosen) == 1 and chosen[0].split()[7] == "1"  # * model accuracy % rank accuracy % rank

    assert main.main([*arguments, "--set", "teacher.proxy.epochs=1"]) == 0
    again = capsys.readouterr().out
    assert "running" not in again and again.splitlines()[-3:] == said.splitlines()[-3:]


@pytest.mark.slow
def test_a_single_candidate_is_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = sets(teacher__candidates="[{model: resnet8, train: {epochs: 1}}]")
    assert main.main(["teachers", FLAGSHIP, *changes, "--artifacts", str(tmp_path), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "resnet8 is the only candidate" in said and "proxy" not in said


def test_without_a_teacher_the_proxy_is_remarked() -> None:
    said = [
        str(warning)
        for warning in loader.load(Path(FLAGSHIP), ["teacher.select=proxy", "distill.method=none"]).warnings
    ]
    assert any("so the candidates are compared by their own accuracy, not by proxy" in line for line in said)


WITH_FILE = "[{model: resnet8, weights: x.pt, expect_top1: 0.5, classes: [a, b]}]"


def test_a_checkpoint_that_lacks_one_of_the_classes_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.pt").write_bytes(b"")
    changes = sets(teacher__candidates=WITH_FILE.replace("x.pt", str(tmp_path / "x.pt")), teacher__select="best")

    assert main.main(["teachers", FLAGSHIP, *changes, "--artifacts", str(tmp_path), "--device", "cpu"]) == 2
    assert "teacher resnet8: classes: it has no 'T-shirt/top' and 9 others" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("candidate", "said"),
    [
        ("{model: resnet8, classes: [a, b]}", "names the outputs of a finished checkpoint"),
        (
            "{model: resnet8, weights: x.pt, train: {epochs: 1}, classes: [a, b]}",
            "names the outputs of a finished checkpoint",
        ),
        ("{model: resnet8, weights: x.pt, classes: [a, a]}", "'a' is there twice"),
        (
            "{model: torchvision/resnet18, weights: x.pt, image_size: 16}",
            "needs images of at least 32 pixels, but its image_size is 16",
        ),
    ],
)
def test_a_contract_that_cannot_be(candidate: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        loader.load(Path(FLAGSHIP), [f"teacher.candidates=[{candidate}]"])


def test_a_file_without_a_known_accuracy_is_remarked() -> None:
    said = [
        str(warning)
        for warning in loader.load(
            Path(FLAGSHIP), ["teacher.candidates=[{model: resnet8, weights: some/x.pt}]"]
        ).warnings
    ]
    assert any("say what accuracy x.pt is known to reach (expect_top1)" in line for line in said)


@pytest.mark.parametrize(
    ("candidate", "said"),
    [
        ("{expect_top1: 0.5}", "model: missing; it has no default"),
        ("{onnx: x.onnx, model: resnet8}", "stands beside onnx, which is the whole teacher: leave model out"),
        ("{onnx: x.onnx, train: {epochs: 1}}", "leave train out"),
        ("{onnx: x.onnx, classes: [a, a]}", "a name is there twice"),
    ],
)
def test_an_onnx_teacher_that_cannot_be(candidate: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        loader.load(Path(FLAGSHIP), [f"teacher.candidates=[{candidate}]"])
