"""`distill.method: auto` from the recipe to the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compress.cli import main
from compress.core.errors import RecipeError
from compress.recipe import loader

ROOT = Path(__file__).parents[2]
FLAGSHIP = ROOT / "recipes" / "mobilenet.yaml"
AUTO = "distill={method: auto, auto: {methods: [none, dhkd], epochs: 1}}"
SMALL = (
    "data.limit_train=240",
    "data.limit_test=60",
    "teacher.candidates=[{model: resnet8, train: {epochs: 1}}]",
    "student={model: resnet8}",
    "train.epochs=1",
    "quantize.scheme=none",
    "require={}",
    "validate={repeats: 20, warmup: 1}",
)


def sets(*changes: str) -> list[str]:
    return [part for text in changes for part in ("--set", text)]


@pytest.mark.slow
def test_trials_in_five_parts_choose_and_the_report_shows_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", str(FLAGSHIP), *sets(*SMALL, AUTO), "--artifacts", str(tmp_path), "--device", "cpu"]
    assert main.main(command) == 0
    said = capsys.readouterr().out
    assert "method auto: 10 short trainings of 1 epoch: none, dhkd, each with 1 seed and 5 parts of the images" in said
    (folder,) = (tmp_path / "runs" / "mobilenet").glob("2*")
    report = json.loads((folder / "report.json").read_text())
    found = report["method_choice"]
    assert (found["images"], found["folds"], found["seeds"]) == (240, 5, 1)  # every training image is judged once
    assert [row["method"] for row in found["trials"]] == ["none", "dhkd"]
    (chosen,) = (row["method"] for row in found["trials"] if row["chosen"])
    assert report["student"]["method"] == chosen and f"method: {found['reason']}" in said
    page = (folder / "report.html").read_text()
    assert '<section id="method"' in page and "240" in page

    assert main.main([*command, "--until", "distill"]) == 0
    assert "proxy: " not in capsys.readouterr().out  # every trial comes from the cache


@pytest.mark.slow
def test_until_teacher_tries_no_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", str(FLAGSHIP), *sets(*SMALL, AUTO), "--artifacts", str(tmp_path), "--device", "cpu"]
    assert main.main([*command, "--until", "teacher"]) == 0
    assert "method auto" not in capsys.readouterr().out and not (tmp_path / "cache" / "proxy").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("distill.method=[auto, kd]",), "auto tries methods one by one; name them in distill.auto.methods"),
        (("distill={method: auto, auto: {methods: [kd]}}",), "at least two methods"),
        (("distill={method: auto, auto: {methods: [kd, kd]}}",), "kd is named twice"),
        (("distill={method: auto, auto: {methods: [none, simkd]}}",), "simkd"),
        (("distill={method: auto}", "teacher.select=proxy"), "use select: best, or name a method"),
        (("distill={method: auto}", "data.labelled=500"), "dkd needs a label for every image"),
        (
            ("distill={method: auto, auto: {methods: [none, kd]}, kd: {ce: 0, kd: 0}}",),
            "ce and kd are both 0: nothing would be learnt",
        ),
        (
            ("distill={method: auto, auto: {methods: [none, fitnet], epochs: 3}, fitnet: {mode: two_stage}}",),
            "the 3 epochs of a trial are all spent on fitnet's hint",
        ),
        (
            ("distill={method: auto}", "distill.temperature=3"),
            "sections: distill.dhkd.temperature or",
        ),
        (("distill={method: auto, temperature: 3}",), "sections: distill.dhkd.temperature or"),
    ],
)
def test_what_cannot_be_tried_is_refused(changes: tuple[str, ...], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        loader.load(FLAGSHIP, changes)
    assert said in str(caught.value)
