"""What is wrong with the images is said by every run, whether or not the data was reused, and is in the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from compress.cli import main
from compress.core.console import Console
from compress.core.records.base import from_json, to_json
from compress.core.records.training import Prepared
from compress.core.records.warnings import RunWarning
from compress.core.store import Store
from compress.data import quality_warnings
from compress.pipeline.workflow import Workflow
from compress.recipe import loader
from compress.recipe.defaults import resolve

RECIPE = """
data: {source: npz, root: mine.npz, image_size: 16, calibration: 16}
teacher: {candidates: [{model: resnet8, train: {epochs: 1}}]}
student: {model: resnet8}
train: {epochs: 1, batch_size: 16}
distill: {method: none}
quantize: {scheme: none}
validate: {repeats: 64, warmup: 1}
"""
LEAK = (
    "data: 20 training images are also in the test part (same pixels); kept in both, so test accuracy may be too high"
)


@pytest.fixture
def leaking(tmp_path: Path) -> Path:
    """A recipe whose test images are training images."""
    images, labels = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3), dtype=np.uint8), np.arange(60) % 3
    arrays = {"train_images": images, "train_labels": labels, "test_images": images[:20], "test_labels": labels[:20]}
    np.savez(tmp_path / "mine.npz", **arrays, class_names=np.array(["a", "b", "c"]))
    (tmp_path / "r.yaml").write_text(RECIPE)
    return tmp_path / "r.yaml"


def test_a_warning_is_printed_when_the_data_is_reused_too(
    leaking: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    loaded = loader.load(leaking)
    for reused in ([], ["data", "data near-duplicates"]):
        store = Store(tmp_path / "artifacts", "cpu", Console(quiet=True))
        work = Workflow(loaded, resolve(loaded.recipe), store)
        assert store.reused == reused and work.warnings[0] == RunWarning(LEAK, affects_verdict=True)
        assert work.warnings[1].text.startswith("data: 20 of 20 test images have a near-duplicate in another part")
        assert capsys.readouterr().err == "".join(f"warning: {warning}\n" for warning in work.warnings)
    assert str(tmp_path) not in work.warnings[0].text


def test_a_record_without_warnings_loads(leaking: Path, tmp_path: Path):
    loaded = loader.load(leaking)
    prepared = Workflow(
        loaded, resolve(loaded.recipe), Store(tmp_path / "artifacts", "cpu", Console(quiet=True))
    ).prepared
    record = json.loads(json.dumps(to_json(prepared)))
    assert from_json(Prepared, record).cautions == prepared.cautions != ()
    del record["warnings"], record["cautions"]
    assert from_json(Prepared, record).cautions == from_json(Prepared, record).warnings == ()


@pytest.mark.slow
def test_a_warning_is_in_the_report_of_every_run(leaking: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for _ in range(2):
        assert main.main(["run", str(leaking), "--artifacts", str(tmp_path / "artifacts"), "-q"]) == 0
        said = capsys.readouterr()
        assert f"warning: {LEAK}\n" in said.err and f"caution    {LEAK}\n" in said.out
        folder = tmp_path / "artifacts" / "runs" / "r" / "latest"
        report = json.loads((folder / "report.json").read_text())
        assert LEAK in report["cautions"] and LEAK in report["warnings"]
        assert "training images are also in the test part" in (folder / "report.html").read_text()


def test_images_that_show_nothing_are_counted() -> None:
    random = np.random.default_rng(0)
    shown = random.integers(0, 256, (60, 4, 4, 3), dtype=np.uint8)
    assert quality_warnings.blank_images([shown]) == []
    black, grey = random.integers(0, 6, (90, 4, 4, 3), dtype=np.uint8), np.full((10, 4, 4, 3), 77, np.uint8)
    black_said, grey_said = quality_warnings.blank_images([shown, np.concatenate([black, grey])])
    assert str(black_said).startswith("90 of 160 images looked at are nearly black") and black_said.affects_verdict
    assert str(grey_said).startswith("10 of 160 images looked at are nearly of one value")
    assert not grey_said.affects_verdict
