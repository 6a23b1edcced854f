"""A network of one's own: refused without leave, checked, trained, exported; its code is part of the key."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

from compress import cli, recipe
from compress.errors import MissingError, RecipeError, UsageError
from compress.models import build, own

CODE = """
from pathlib import Path
from torch import nn

Path(__file__).with_name("was run").touch()


def small(classes):
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))


def silent(classes):
    return nn.Flatten()


def no_module(classes):
    return classes


def without():
    return nn.Linear(1, 1)
"""
RECIPE = """
name: mine
data: {source: fashion, image_size: 32, augment: none, limit_train: 300, limit_test: 200, validation: 60}
teacher:
  candidates:
    - {model: "minenets.nets:small", train: {epochs: 1}}
student: {model: "minenets.nets:small"}
distill: {method: rkd}
train: {epochs: 1, batch_size: 32}
validate: {repeats: 64, warmup: 2}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with a package of networks beside it."""
    (tmp_path / "minenets").mkdir()
    (tmp_path / "minenets" / "__init__.py").touch()
    (tmp_path / "minenets" / "nets.py").write_text(CODE)
    (tmp_path / "mine.yaml").write_text(RECIPE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path / "mine.yaml"
    for name in [name for name in sys.modules if name.split(".")[0] == "minenets"]:
        del sys.modules[name]
    importlib.invalidate_caches()


def test_a_strangers_recipe_runs_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("check", "run", "show", "teachers", "plan"):
        assert cli.main([command, str(project)]) == 2
        said = capsys.readouterr().err
        assert "mine.yaml:6:15: teacher.candidates.0.model: minenets.nets:small is Python code that would be run" in said
        assert "student.model: minenets.nets:small is Python code" in said and "--allow-code" in said
    with pytest.raises(RecipeError):
        recipe.load(project)
    assert not (project.parent / "minenets" / "was run").exists()


def test_check_probes_the_vector_and_the_file(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(project), "--allow-code"]) == 0
    said = capsys.readouterr().out
    assert "student minenets.nets:small: 330 parameters" in said and "exported, onnxruntime and torch differ by" in said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("minenets.nets:small2", r"has no function small2\(classes\)"),
        ("minenets.nets:without", r"has no function without\(classes\)"),
        ("minenets.nets:no_module", "gives a int, not an nn.Module"),
    ],
)
def test_a_function_that_cannot_be_used(project: Path, name: str, said: str) -> None:
    sys.path.append(str(project.parent))
    with pytest.raises(UsageError, match=said):
        build(name, classes=10)


def test_absent_modules_and_networks_without_a_linear(project: Path) -> None:
    sys.path.append(str(project.parent))
    with pytest.raises(MissingError, match="there is no module 'elsewhere'"):
        build("elsewhere:small", classes=10)
    with pytest.raises(UsageError, match="has no Linear layer"):
        own.head(build("minenets.nets:silent", classes=10), "minenets.nets:silent")


def test_the_source_is_read_and_not_run(project: Path) -> None:
    sys.path.append(str(project.parent))
    before = own.source("minenets.nets:small")
    (project.parent / "minenets" / "other.py").write_text("raise SystemExit\n")

    assert own.source("minenets.nets:small") != before
    assert not (project.parent / "minenets" / "was run").exists()


@pytest.mark.slow
def test_it_teaches_learns_and_ships_and_changed_code_is_trained_again(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifacts = project.parent / "artifacts"
    arguments = ["run", str(project), "--allow-code", "--artifacts", str(artifacts), "--device", "cpu"]
    assert cli.main(arguments) in (0, 6), capsys.readouterr().err
    report = json.loads((artifacts / "runs" / "mine" / "latest" / "report.json").read_text())
    assert report["student"]["model"] == "minenets.nets:small" and report["student"]["params"] == 330
    assert report["models"][-1]["precision"] == "int8"

    (project.parent / "minenets" / "nets.py").write_text(CODE + "\n# a change\n")
    capsys.readouterr()
    assert cli.main([*arguments, "--until", "teacher"]) == 0
    assert "teacher minenets.nets:small  running" in " ".join(capsys.readouterr().out.split(" ")).replace("   ", "  ")
