"""A student that always names the commonest of two classes: said beside the verdict, and failed by `min_recall`."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.cli import main
from tests.support.unequal_photos import write_unequal_photos

pytestmark = pytest.mark.slow

RECIPE = """
data: {source: folder, root: parts, image_size: 32, augment: none, calibration: 32, validation: 0.2}
teacher: {candidates: [{model: resnet8, train: {epochs: 1, batch_size: 64}}]}
student: {model: resnet8}
distill: {method: kd}
train: {epochs: 1, batch_size: 64}
validate: {repeats: 16, warmup: 1}
device: {samples: 16}
require: {min_top1: 0.8}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unequal")
    write_unequal_photos(folder / "parts")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder / "recipe.yaml"


def run(recipe: Path, *options: str) -> tuple[int, dict[str, Any]]:
    artifacts = recipe.parent / "artifacts"
    code = main.main(["run", str(recipe), "--artifacts", str(artifacts), *options])
    return code, json.loads((artifacts / "runs" / "recipe" / "latest" / "report.json").read_text())


def predictions(recipe: Path) -> list[dict[str, str]]:
    path = recipe.parent / "artifacts" / "runs" / "recipe" / "latest" / "predictions.csv"
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_the_accuracy_passes_and_what_it_hides_stands_beside_it(recipe: Path, capsys: pytest.CaptureFixture[str]):
    code, report = run(recipe)
    assert code == 0 and report["status"] == "passed"
    rows = {row["class"]: row for row in report["per_class"]}
    assert (rows["faulty"]["right"], rows["faulty"]["n"]) == (0, 4)
    images = sum(row["n"] for row in rows.values())
    assert rows["faulty"]["student_ci95"][1] < 0.5
    ship = next(row for row in report["models"] if row["file"] == report["ships"]["file"])
    assert ship["top1"] == (images - 4) / images > 0.94 and ship["balanced_accuracy"] == 0.5
    beside = "\n".join(report["cautions"])
    assert "hardly ever gets one class right" in beside and "faulty: 0 of 4 right" in beside
    assert f"training images are unequal ({380 - (images - 4)} of good, 16 of faulty)" in beside
    said = capsys.readouterr().out
    table = predictions(recipe)
    assert len({row["path"] for row in table}) == len(table) == images
    assert all((recipe.parent / "parts" / row["path"]).is_file() for row in table)
    assert all(row["path"].split("/")[0] == row["label"] for row in table)
    assert {row[f"{ship['file']} answer"] for row in table} == {"good"}
    assert all(0.5 <= float(row[f"{ship['file']} probability"]) <= 1 for row in table)
    assert "lowest recall: faulty 0 of 4 (0.0 % [0.0, 49.0])" in said and "balanced accuracy 50.0 % " in said


def test_a_limit_on_the_recall_fails_it(recipe: Path, capsys: pytest.CaptureFixture[str]):
    code, report = run(recipe, "--set", "require.min_recall=0.8")
    assert code == 5 and report["reused"][-1] == "device"
    row = next(row for row in report["requirements"] if row["name"] == "min_recall")
    assert row["verdict"] == "failed" and row["value"] == 0 and "Holm's correction: faulty" in row["sentence"]
    assert not any("unequal" in text for text in report["cautions"])
    code, report = run(recipe, "--set", "require.min_recall={faulty: 0.8}")
    assert code == 5 and report["requirements"][-1]["class_name"] == "faulty"
    assert "min_recall.faulty: The recall of faulty is 0.0 %" in capsys.readouterr().out


def test_check_says_it_before_anything_is_trained(recipe: Path, capsys: pytest.CaptureFixture[str]):
    assert main.main(["check", str(recipe)]) == 0
    assert "always naming good is right on 95.0 %" in capsys.readouterr().out


def test_no_image_is_in_a_report_that_may_show_none(recipe: Path):
    run(recipe)
    code, report = run(recipe, "--set", "report.images=false")
    folder = recipe.parent / "artifacts" / "runs" / "recipe" / "latest"
    assert code == 0 and report["images_shown"] is False
    assert report["reused"] == ["data", "teacher", "distill", "strip", "convert", "quantize", "validate", "device"]
    assert "data:image" not in (folder / "report.html").read_text(encoding="utf-8")
    assert list(folder.glob("*.npz"))
    for path in folder.glob("*.npz"):
        with np.load(path) as stored:
            assert all(stored[name].dtype != np.uint8 for name in stored.files), path.name


def test_no_image_is_in_a_bundle_of_synthetic_ones(recipe: Path, capsys: pytest.CaptureFixture[str]):
    run(recipe, "--set", "report.images=false")
    _, report = run(recipe, "--set", "report.images=false", "--set", "bundle.images=synthetic")
    artifacts = recipe.parent / "artifacts"
    folder = artifacts / "runs" / "recipe" / "latest"
    said = capsys.readouterr().out
    assert "the bundle beside it holds test images" in said and "16 synthetic images and none of yours" in said
    assert report["reused"] == ["data", "teacher", "distill", "strip", "convert", "quantize"]
    arrays = [np.load(path) for path in artifacts.glob("cache/data/*/*_images.npy")]
    own = {image[..., :32, :32, :].tobytes() for one in arrays for image in one if one.shape[1] == 32}
    assert len(own) > 20
    with np.load(folder / "bundle" / "samples.npz") as stored:
        assert len(stored["images"]) == 16 and own.isdisjoint(image.tobytes() for image in stored["images"])
    assert not list((folder / "bundle" / "photos").glob("own*"))
    assert all(row["ok"] and row["top1"] is None and row["agreement"] == 1 for row in report["device"])
    assert all("synthetic" in " ".join(row["remarks"]) for row in report["device"])
