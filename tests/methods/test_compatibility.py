"""Methods check their networks before training: published pairs pass, impossible ones are refused with their place."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from compress.cli import main
from compress.methods import METHODS, build_method
from compress.models.outline import Outline, outline
from compress.recipe import loader
from compress.recipe.schema import Distill
from compress.training import schedule

PAIRS = sorted((Path(__file__).parents[2] / "recipes" / "cifar100").glob("*.yaml"))
LIST = ["dhkd", "reviewkd"]
RECIPE = """\
data: {source: fashion, limit_train: 60, limit_test: 20}
teacher: {candidates: [{model: resnet56, train: {epochs: 1}}]}
student: {model: resnet8}
"""


@cache
def known(name: str, width: float | None) -> Outline:
    return outline(name, classes=100, width=width, image_size=32)


@pytest.mark.parametrize("path", PAIRS, ids=lambda path: path.stem)
def test_every_method_accepts_every_published_pair(path):
    settings = loader.load(path).recipe
    (teacher,), (student,) = settings.teacher.candidates, settings.student.networks
    labels = torch.arange(100)
    for methods in [*([name] for name in METHODS if name != "none"), LIST]:
        distill = Distill.model_validate({**settings.distill.model_dump(), "method": methods})
        with torch.device("meta"):
            build_method(
                distill,
                student=known(student.model, student.width),
                teacher=known(teacher.model, teacher.width),
                train_labels=labels,
                train_index=labels,
            )


def test_there_are_eleven_pairs():
    assert len(PAIRS) == 11


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (
            ["method=catkd", "side=4"],
            "{at}: distill.catkd.side: 4 is larger than the last map of mobilenet_v2 (2x2); lower it "
            "(student mobilenet_v2, teacher resnet56)",
        ),
        (
            ["method=fitnet", "stage=4"],
            "{at}: distill.method: fitnet with stage 4 needs the map 'stages_post.4', which the catalogue does "
            "not have for resnet56; choose another method or network (student mobilenet_v2, teacher resnet56)",
        ),
        (
            ["method=[ofd, reviewkd]"],
            "{at}: distill.method: ofd reads the teacher with the batch's statistics, reviewkd with its own; "
            "choose one with teacher_bn, or leave one of them out (student mobilenet_v2, teacher resnet56)",
        ),
    ],
)
def test_check_and_run_refuse_with_exit_2_before_anything_is_trained(tmp_path, capsys, flags, reason):
    path = tmp_path / "pair.yaml"
    path.write_text(RECIPE)
    options = [
        word
        for flag in ("student.model=mobilenet_v2", *(f"distill.{flag}" for flag in flags))
        for word in ("--set", flag)
    ]
    for command in (["check", str(path)], ["run", str(path), "--artifacts", str(tmp_path / "a"), "--device", "cpu"]):
        assert main.main([*command, *options]) == 2
        shown = " ".join(capsys.readouterr().err.split())
        assert reason.format(at=f"--set distill.{flags[0]}") in shown
    assert not (tmp_path / "a" / "cache" / "teacher").exists()


@pytest.mark.parametrize(("flags", "least"), [(["method=rkd"], 3), (["method=[kd, rkd]"], 3)])
def test_check_reports_a_batch_too_small_for_the_method(tmp_path, capsys, flags, least):
    path = tmp_path / "pair.yaml"
    path.write_text(RECIPE + "train: {batch_size: 2}\n")
    assert main.main(["check", str(path), *(word for flag in flags for word in ("--set", f"distill.{flag}"))]) == 2
    said = capsys.readouterr().err
    assert (
        f"{path}:4:9: train.batch_size: " in said
        and f"needs at least {least} images per batch, got 2 (a smaller last batch" in said
    )


def test_a_last_batch_too_small_for_rkd_is_left_out():
    method = build_method(
        Distill(method="rkd"),
        student=known("resnet8", None),
        teacher=known("resnet8", None),
        train_labels=torch.arange(100),
    )
    assert [schedule.steps(pictures, 16, method.smallest_batch()) for pictures in (64, 65, 66, 67)] == [4, 4, 4, 5]


def test_a_network_without_taps_is_refused_with_its_place(tmp_path, capsys, monkeypatch):
    from dataclasses import replace

    from compress.models import catalog

    monkeypatch.setitem(catalog.NETWORKS, "resnet8", replace(catalog.NETWORKS["resnet8"], roles=None))
    path = tmp_path / "pair.yaml"
    path.write_text(RECIPE + "distill: {method: [kd, at]}\n")
    assert main.main(["check", str(path)]) == 2
    assert (
        f"{path}:3:18: student.model: at reads feature maps, which the catalogue does not name for resnet8; "
        "choose another" in capsys.readouterr().err
    )


def test_check_notes_a_student_that_ships_larger(tmp_path, capsys):
    path = tmp_path / "pair.yaml"
    path.write_text(RECIPE.replace("resnet56", "resnet32x4") + "distill: {method: simkd}\n")
    assert main.main(["check", str(path)]) == 0
    assert "the shipped resnet8 is larger than resnet8 itself" in " ".join(capsys.readouterr().out.split())
