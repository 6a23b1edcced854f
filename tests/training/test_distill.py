"""A distillation from the command line: the printed cost of its teacher, and the memory layout of its networks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compress import models
from compress.cli import main
from compress.core.records.base import File
from compress.core.records.training import Network, Normalization
from compress.models import checkpoints
from compress.stages import teacher as teachers
from compress.training import build, distill

pytestmark = pytest.mark.usefixtures("one_thread")
SIDE, TRAINED = 16, 160


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """resnet8 teaches resnet8 for two epochs on 160 pictures of noise."""
    random = np.random.default_rng(0)
    parts = {
        name: (random.integers(0, 256, (count, SIDE, SIDE, 3)).astype(np.uint8), np.arange(count) % 4)
        for name, count in (("train", 200), ("test", 40))
    }
    arrays = {
        f"{name}_{kind}": array
        for name, pair in parts.items()
        for kind, array in zip(("images", "labels"), pair, strict=True)
    }
    np.savez(tmp_path / "set.npz", class_names=np.array(list("abcd")), **arrays)
    path = tmp_path / "small.yaml"
    path.write_text(
        f"data: {{source: npz, root: set.npz, image_size: {SIDE}, augment: crop_flip, "
        "validation: 40, calibration: 32}\n"
        "teacher: {candidates: [{model: resnet8, train: {epochs: 1}}]}\n"
        "student: {model: resnet8}\n"
        "distill: {baseline: false}\n"
        "train: {epochs: 2, batch_size: 32}\n"
    )
    return path


@pytest.fixture
def said(recipe: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """What `compress run` says of the distillation before its first word on an epoch, with more settings."""

    def run(*settings: str) -> list[str]:
        changes = [part for setting in settings for part in ("--set", setting)]
        code = main.main(
            [
                "run",
                str(recipe),
                "--artifacts",
                str(recipe.parent / "a"),
                "--device",
                "cpu",
                "--until",
                "distill",
                *changes,
            ]
        )
        out, err = capsys.readouterr()
        assert code == 0, err
        lines = out.splitlines()
        begin = next(number for number, line in enumerate(lines) if line.split() == ["distill", "running"])
        first = next(number for number, line in enumerate(lines) if line.startswith("  student resnet8 by "))
        return lines[begin + 1 : first]

    return run


def test_the_cost_of_the_teacher_is_printed_before_the_first_epoch(said):
    at_most = f"teacher logits: at most {2 * TRAINED} rows (0.0 MiB with their table) for 2 views per image"
    assert said() == [at_most]
    most, known = said("distill.method=kd")
    assert (
        most == at_most
        and known.endswith(" rows cached by earlier runs")
        and TRAINED < int(known.split()[2]) <= 2 * TRAINED
    )
    assert said("distill.method=at") == ["teacher resnet8 runs on every batch: at reads its feature maps"]


def laid_out(model: nn.Module) -> bool:
    """Whether every convolution's weight is in channels_last, and one is not in the default layout as well."""
    weights = [p for p in model.parameters() if p.dim() == 4]
    return all(w.is_contiguous(memory_format=torch.channels_last) for w in weights) and any(
        not w.is_contiguous() for w in weights
    )


def test_a_student_is_trained_in_channels_last(said, monkeypatch):
    layouts: list[bool] = []
    for module in (distill, teachers):
        fit: Any = module.fit
        monkeypatch.setattr(
            module,
            "fit",
            lambda model, *args, fit=fit, **named: layouts.append(laid_out(model)) or fit(model, *args, **named),
        )
    said()
    assert layouts == [True, True]  # the teacher, the student


@pytest.mark.parametrize("key", ["none", "file", "IMAGENET1K_V1"])
def test_every_starting_network_is_in_channels_last(tmp_path, monkeypatch, key):
    record = Network("resnet8", None, 4, SIDE, Normalization((0.5,) * 3, (0.25,) * 3))
    checkpoints.save_state(models.build("resnet8", classes=4), tmp_path / "a.safetensors")
    monkeypatch.setattr(
        models, "pretrained", lambda name, weights, classes, side: (models.build(name, classes=classes), ())
    )
    weights = File.of(tmp_path / "a.safetensors") if key == "file" else None
    assert laid_out(build.build_for_training(record, key, weights, new_head=False, device="cpu")[0])
    assert laid_out(build.load_network(record, weights, "cpu"))  # what teaches


def test_unlabelled_images_are_trained_on_where_a_teacher_answers(said, recipe, monkeypatch):
    """The teacher and `none` see labelled images alone; a method sees all, with the labels that are left."""
    seen: dict[str, tuple[int, int]] = {}

    def noted(name: str, fit: Any) -> Callable[..., Any]:
        def run(model: nn.Module, method: Any, images: Any, **named: Any) -> Any:
            seen[name] = len(images.train_index), int((images.labels[images.train_index] >= 0).sum())
            return fit(model, method, images, **named)

        return run

    monkeypatch.setattr(distill, "fit", noted("student", distill.fit))
    monkeypatch.setattr(teachers, "fit", noted("teacher", teachers.fit))
    lines = said("data.labelled=24", "distill.method=kd")
    assert seen == {"teacher": (24, 24), "student": (TRAINED, 24)}
    assert lines[0] == "student learns 24 images with labels, and 136 images from the teacher alone (kd)"
    said("data.labelled=24", "distill.method=none")
    assert seen["student"] == (24, 24)


def test_pretrained_weights_with_a_new_last_layer_start_from_a_probe_and_its_accuracy_is_shown(recipe, capsys):
    torch.manual_seed(1)
    checkpoints.save_state(models.build("resnet8", classes=7), recipe.parent / "seven.safetensors")
    command = ["run", str(recipe), "--artifacts", str(recipe.parent / "a"), "--device", "cpu", "--until", "distill"]
    seven = recipe.parent / "seven.safetensors"
    command += ["--set", f"student.weights={seven}", "--set", "distill.method=kd"]
    command += ["--set", f"teacher.candidates.0.weights={seven}"]
    assert main.main(command) == 0
    first = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("resnet8: a last layer alone reaches ") for line in first) == 2
    assert main.main(command) == 0  # from the cache
    again = capsys.readouterr().out.splitlines()
    for name, kind in (("teacher resnet8", "teacher"), ("student", "distill")):
        (stage,) = recipe.parent.glob(f"a/cache/{kind}/*/stage.json")
        checks = json.loads(stage.read_text())["result"]["checks"]
        assert checks["batch_norm"] == "frozen" and checks["probe_images"] == TRAINED and checks["images"] == 40
        shown = [f"{100 * checks[key] / 40:.1f} %" for key in ("right", "probe_right")]
        line = (
            f"{name}: {shown[0]} of 40 validation images; a last layer alone, on the pretrained features, "
            f"reaches {shown[1]}"
        )
        assert line in first and line in again


@pytest.mark.parametrize("own", ["student.weights=four.safetensors", "train.probe=false", "student.weights=none"])
def test_no_probe_where_the_last_layer_is_trained_or_it_is_switched_off(recipe, capsys, own):
    for name, classes in (("four", 4), ("seven", 7)):
        checkpoints.save_state(models.build("resnet8", classes=classes), recipe.parent / f"{name}.safetensors")
    command = ["run", str(recipe), "--artifacts", str(recipe.parent / "a"), "--device", "cpu", "--until", "distill"]
    own = own.replace("=four", f"={recipe.parent}/four")
    seven = recipe.parent / "seven.safetensors"
    command += ["--set", f"student.weights={seven}", "--set", "distill.method=none", "--set", own]
    assert main.main(command) == 0
    assert "a last layer alone" not in capsys.readouterr().out
