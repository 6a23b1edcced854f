"""The recipe's copies in a run's folder run from there: the same data, the same stages of the cache."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from compress import models
from compress.cli import main
from compress.pipeline.run_folder import recipe_copy
from compress.recipe import loader, yaml_parser, yaml_writer
from compress.recipe.defaults import resolve

TEXT = """# What it does: nothing
data: {source: npz, root: here/pictures.npz, image_size: 16, validation: 8}  # beside it
teacher:
  candidates:
    - {model: resnet8, weights: "../teacher.safetensors"}
    - model: resnet14
student: {model: mobilenet_v2, width: 0.5}
"""


STAGES = ["data", "data", "teacher"]  # the second one looks for near-duplicates


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A recipe with its pictures below it and a checkpoint above."""
    folder = tmp_path / "project" / "recipes"
    (folder / "here").mkdir(parents=True)
    random = np.random.default_rng(0)
    labels = np.arange(40) % 4
    pictures = {
        part: random.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8) for part in ("train_images", "test_images")
    }
    np.savez(
        folder / "here" / "pictures.npz",
        **pictures,
        train_labels=labels,
        test_labels=labels,
        class_names=np.array(list("abcd")),
    )  # type: ignore[arg-type]
    torch.manual_seed(0)
    save_file(models.build("resnet8", classes=4).state_dict(), tmp_path / "project" / "teacher.safetensors")
    path = folder / "mine.yaml"
    path.write_text(TEXT.replace("    - model: resnet14\n", ""))
    return path


@pytest.mark.parametrize("more", [(), ("--set", "data.root=../recipes/here/pictures.npz", "--set", "distill.alpha=3")])
def test_both_copies_run_from_the_runs_folder_and_find_every_stage(
    project: Path,
    more: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(project.parent)
    loaded = loader.load(project, more[1::2])
    run = tmp_path / "elsewhere" / "run"
    run.mkdir(parents=True)
    recipe_copy.write(loaded, resolve(loaded.recipe), run)
    options = ["--artifacts", str(tmp_path / "artifacts"), "--until", "teacher", "--device", "cpu"]
    assert main.main(["run", "mine.yaml", *more, *options]) == 0, capsys.readouterr().err
    assert re.findall(r"^(\S+).* running$", capsys.readouterr().out, re.MULTILINE) == STAGES
    monkeypatch.chdir(tmp_path)

    for command in ([str(run / "recipe.yaml")], recipe_copy.again(run).split()[2:]):
        assert main.main(["run", *command, *options]) == 0, capsys.readouterr().err
        assert re.findall(r"^(\S+).* reused$", capsys.readouterr().out, re.MULTILINE) == STAGES
    assert resolve(loader.load(run / "resolved.yaml").recipe).distill == resolve(loaded.recipe).distill
    assert {loader.load(run / name).name for name in ("recipe.yaml", "resolved.yaml")} == {"mine"}


def test_a_recipe_without_relative_paths_is_copied_to_the_letter(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    lines = (
        "name: b",
        "data: {source: fashion}  # \u00e9",
        "teacher: {candidates: [{model: resnet8, weights: ~/a.pt}]}",
        "student: {model: resnet8}",
        "",
    )
    path.write_bytes("\r\n".join(lines).encode())
    loaded = loader.load(path)
    (tmp_path / "run").mkdir()

    recipe_copy.write(loaded, resolve(loaded.recipe), tmp_path / "run")

    assert (tmp_path / "run" / "recipe.yaml").read_bytes() == path.read_bytes()


def test_paths_are_written_from_the_home_folder_or_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    values = {
        "data": {"source": "folder", "root": "photos"},
        "teacher": {
            "candidates": [
                {"model": "resnet8", "weights": "w.pt"},
                {"onnx": "t.onnx"},
                {"model": "resnet20", "weights": "IMAGENET1K_V1"},
            ]
        },
        "student": {
            "choose": {"from": [{"model": "resnet8", "weights": "/w.pth"}, {"model": "resnet8", "weights": "../s.pth"}]}
        },
    }
    assert recipe_copy.written_out(values, tmp_path / "recipes") == {
        ("data", "root"): "~/recipes/photos",
        ("teacher", "candidates", 0, "weights"): "~/recipes/w.pt",
        ("teacher", "candidates", 1, "onnx"): "~/recipes/t.onnx",
        ("student", "choose", "from", 1, "weights"): "~/s.pth",
    }
    assert recipe_copy.written_out({"data": {"root": "photos"}}, Path("/srv")) == {("data", "root"): "/srv/photos"}
    assert recipe_copy.written_out(
        {"data": {"root": "https.npz"}, "teacher": None, "student": {"weights": "https://x/a.pt"}}, Path("/srv")
    ) == {("data", "root"): "/srv/https.npz"}


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        TEXT.replace("data:", "name:\ndata:"),
        TEXT.replace("data:", "name: null  # the file's\ndata:"),
        TEXT.replace("root: here/pictures.npz", 'root: "here/\\u00e9.npz"'),
        TEXT.replace("- model: resnet14", "- model: resnet14\n      weights: |\n        a.pt"),
        yaml.safe_dump(yaml.safe_load(TEXT), default_flow_style=True, width=1000),
        "".join(f"  {line}\n" for line in TEXT.splitlines()),
    ],
)
def test_changed_text_differs_at_the_named_keys_alone(text: str) -> None:
    changes: dict[yaml_parser.Keys, str] = {
        ("name",): "m",
        ("data", "root"): "/\u00fc b: #c.npz",
        ("teacher", "candidates", 0, "weights"): "~/'\"\\x.pt",
    }
    expected, _ = yaml_parser.parse(text, "", 0, "", [])
    if "weights" in expected["teacher"]["candidates"][1]:
        changes["teacher", "candidates", 1, "weights"] = expected["teacher"]["candidates"][1]["weights"] = "/a.pt"
    expected |= {"name": "m"}
    expected["data"]["root"] = changes["data", "root"]
    expected["teacher"]["candidates"][0]["weights"] = changes["teacher", "candidates", 0, "weights"]

    changed = yaml_writer.changed(text, changes)

    assert yaml_parser.parse(changed, "", 0, "", problems := [])[0] == expected and problems == []
    assert changed.count("#") == text.count("#") + 1


@pytest.mark.parametrize(
    ("artifacts", "device", "options"),
    [
        ("artifacts", "auto", []),
        ("../a b", "cpu", ["--artifacts", "../a b", "--device", "cpu"]),
        ("artifacts", "cuda:1", ["--device", "cuda:1"]),
    ],
)
def test_the_command_says_where_the_results_lie_and_where_it_trained(
    tmp_path: Path, artifacts: str, device: str, options: list[str]
) -> None:
    path, run = tmp_path / "mine.yaml", tmp_path / "run"
    path.write_text(TEXT)
    run.mkdir()
    loaded = loader.load(path, ("train.epochs=3",), allow_code=True).run_with(Path(artifacts), device)
    assert shlex.split(loaded.command) == [
        "compress",
        "run",
        str(path),
        "--set",
        "train.epochs=3",
        "--allow-code",
        *options,
    ]
    assert shlex.split(recipe_copy.again(run)) == ["compress", "run", str(run / "resolved.yaml")]  # no report
    (run / "report.json").write_text(json.dumps({"command": loaded.command}))
    assert shlex.split(recipe_copy.again(run)) == [
        "compress",
        "run",
        str(run / "resolved.yaml"),
        "--allow-code",
        *options,
    ]
    assert recipe_copy.options_of(loaded.command, ("--artifacts",)) == options[:2] * ("--artifacts" in options)
