"""Networks of timm through the command line: checked, taught by a backbone without a classifier, fused, reported."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from compress.cli import main
from export.runtime import Model

timm = pytest.importorskip("timm", reason="timm is not installed")

COLOURS = np.array([(200, 60, 60), (60, 200, 60), (60, 60, 200)])
Ran = Callable[..., tuple[int, str]]


@pytest.fixture
def ran(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Ran:
    """`compress COMMAND` on images whose colour is their class -> (exit code, everything printed)."""
    generator, labels = np.random.default_rng(0), np.arange(240) % 3
    images = np.clip(COLOURS[labels][:, None, None] + generator.normal(0, 12, (240, 32, 32, 3)), 0, 255)
    parts = {"train": slice(180), "test": slice(180, None)}
    arrays = {f"{part}_images": images[rows].astype(np.uint8) for part, rows in parts.items()}
    arrays |= {f"{part}_labels": labels[rows] for part, rows in parts.items()}
    np.savez(tmp_path / "colours.npz", **arrays, class_names=np.array(["red", "green", "blue"]))

    def run(command: str, candidate: str, student: str, *more: str) -> tuple[int, str]:
        (tmp_path / "r.yaml").write_text(
            "data: {source: npz, root: colours.npz, image_size: 32, validation: 60}\n"
            f"teacher: {{candidates: [{{{candidate}}}]}}\nstudent: {{{student}}}\n"
            "train: {epochs: 1, batch_size: 30}\ndistill: {method: dhkd, baseline: false}\n"
            "validate: {repeats: 64, warmup: 2}\n"
        )
        place = [] if command == "check" else ["--artifacts", str(tmp_path / "a"), "--device", "cpu"]
        code = main.main([command, str(tmp_path / "r.yaml"), *place, *more])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


@pytest.mark.slow
def test_a_backbone_teaches_and_a_network_of_branches_ships_fused(ran: Ran, tmp_path: Path):
    backbone = timm.create_model("test_vit", num_classes=0)
    save_file(backbone.state_dict(), tmp_path / "backbone.safetensors")
    teacher = "model: timm/test_vit, weights: backbone.safetensors, train: {epochs: 1, batch_size: 30, keep: best}"

    code, said = ran("run", teacher, "model: timm/repghostnet_050")

    assert code in (0, 5, 6), said
    folder = next((tmp_path / "a" / "runs" / "r").glob("2*"))
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    (fusion,) = [row for row in report["export"]["rewrites"] if row["name"] == "branches to one layer"]
    assert fusion["kept"] and fusion["nodes"] > 0 and fusion["max_abs_diff"] <= fusion["limit"]
    assert f"timm/repghostnet_050: the same answers with {fusion['nodes']} modules fused" in said
    plain = sum(value.numel() for value in timm.create_model("repghostnet_050", num_classes=3).parameters())
    assert 0 < report["student"]["params"] < plain
    assert Model.load(folder / "teacher.onnx").contract.mean == (0.5,) * 3  # timm's own for this network's weights
    assert Model.load(folder / "student.int8.onnx").contract.mean != (0.5,) * 3  # from scratch: the data's


@pytest.mark.slow
@pytest.mark.parametrize(
    ("candidate", "student", "code", "said"),
    [
        ("model: timm/lcnet_035", "model: timm/lcnet_0035", 2, "student.model: model: timm"),
        (
            "model: timm/lcnet_035",
            "model: timm/mobilenetv3_small_050, weights: ra9_in1k",
            2,
            "has no weights 'ra9_in1k'",
        ),
        ("model: timm/ghostnetv3_050", "model: resnet8", 2, "does not take images of 32 pixels"),
        (
            "model: timm/lcnet_035",
            "model: timm/mobilenetv3_small_050, weights: pretrained",
            0,
            "lamb_in1k, trained at 224",
        ),
        ("model: timm/vit_tiny_patch16_224", "model: timm/lcnet_035", 0, "no stages named, pooled 192"),
    ],
)
def test_check_says_what_is_wrong_or_right(ran: Ran, candidate: str, student: str, code: int, said: str):
    found, printed = ran("check", candidate, student)

    assert found == code and said in printed


def test_without_timm_check_names_the_place_and_the_package(ran: Ran, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "timm", None)

    code, said = ran("check", "model: resnet8", "model: timm/lcnet_035")

    assert code == 3
    assert "student.model: networks named timm/NAME need the package timm: pip install 'timm>=1.0'" in said
