"""A run on clips whose class shows in no frame: split at random it would look nearly perfect."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compress.cli.main import main
from tests.support.clip_folders import CLIP, write_clips

pytestmark = pytest.mark.slow
RECIPE = """
data: {{source: folder, root: clips, image_size: 32, augment: none, test: 0.4{group}}}
teacher: {{candidates: [{{model: resnet8, train: {{epochs: 2}}}}]}}
student: {{model: resnet8}}
distill: {{method: kd}}
train: {{epochs: 2, threads: 1}}
validate: {{repeats: 30}}
quantize: {{scheme: none}}
device: {{photos: 0}}
require: {{max_top1_drop: 5.0, min_top1: 0.6}}
"""


@pytest.mark.usefixtures("one_thread")
def test_a_grouped_runs_verdict_counts_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_clips(tmp_path / "clips", clips=12, frames=6)
    (tmp_path / "clips.yaml").write_text(RECIPE.format(group=f", group: '{CLIP}'"))
    main(["run", str(tmp_path / "clips.yaml"), "--artifacts", str(tmp_path / "artifacts")])
    report = json.loads((tmp_path / "artifacts/runs/clips/latest/report.json").read_text())
    rows = [row for row in report["models"] if row["role"] == "student"]
    groups = rows[0]["groups"]
    assert 2 <= groups <= 20 and rows[0]["images"] == 6 * groups
    low, high = rows[0]["top1_ci95"]
    assert high - low > 0.2  # of the groups, not of the images
    (pair,) = (row for row in report["comparisons"] if row["against"] == "teacher.onnx")
    assert pair["groups"] == groups and "Obuchowski" in pair["test"] and 0 <= pair["p"] <= 1
    sentences = {row["name"]: row["sentence"] for row in report["requirements"]}
    assert f"{groups} groups of test images" in sentences["max_top1_drop"]
    assert "Rao and Scott" in sentences["min_top1"]
    page = (tmp_path / "artifacts/runs/clips/latest/report.html").read_text()
    assert f"({groups} groups)" in page


@pytest.mark.usefixtures("one_thread")
def test_near_duplicates_stand_beside_the_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_clips(tmp_path / "clips", clips=12, frames=6)
    (tmp_path / "clips.yaml").write_text(RECIPE.format(group=""))
    main(["run", str(tmp_path / "clips.yaml"), "--artifacts", str(tmp_path / "artifacts")])
    printed = capsys.readouterr()
    folder = tmp_path / "artifacts/runs/clips/latest"
    report = json.loads((folder / "report.json").read_text())
    found = report["near_duplicates"]
    assert found["test"] > 0.9 * found["test_images"] and found["group"] == r"([^/]+/[^/]+)_\d+"
    (caution,) = (text for text in report["cautions"] if "near-duplicate" in text)
    assert found["group"] in caution and caution in printed.out + printed.err
    page = (folder / "report.html").read_text()
    section = page.partition('<section id="near_duplicates"')[2].partition("</section>")[0]
    assert section.count("data:image/png") == 24 and "clip" in section and "data.group" in section
    assert all("groups" not in row for row in report["models"])
