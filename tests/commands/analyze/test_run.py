"""`compress analyze` on a run folder: with and without cache, trace and scikit-learn; twice; against another run."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.cli import main
from compress.commands.analyze.run import analyze
from compress.core.console import Console
from compress.core.errors import MissingError, StageError, UsageError
from compress.pipeline.run_folder import cache_refs
from compress.pipeline.run_folder.cache_refs import Kept
from tests.support import report_example as example

pytestmark = pytest.mark.slow

QUIET = Console(quiet=True)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    example.build(tmp_path / "run", n=300)
    return tmp_path / "run"


@pytest.fixture
def whole(run: Path, trained_teacher: Any, distilled: Any, stripped: Any, training: Any, dhkd: Any) -> Path:
    """A run whose cache is there."""
    own = dhkd.alone().model_dump(mode="json", by_alias=True)
    cache_refs.write(Kept(trained_teacher, distilled, stripped, training, own), run, run.parent)
    return run


def trace(run: Path, **cosines: float) -> None:
    """Columns of cosines in the student's history, as `train.trace_gradients` writes them."""
    path = run / "history" / "student.csv"
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [*rows[0], *cosines])
        writer.writeheader()
        writer.writerows(row | {name: str(value) for name, value in cosines.items()} for row in rows)
    (run / "resolved.yaml").write_text("train: {trace_gradients: 7}\ndistill: {method: dhkd, dhkd: {head: none}}\n")


def look(run: Path, *others: Path) -> tuple[dict[str, Any], str]:
    page = analyze(run, against=others, artifacts=run.parent, console=QUIET)
    return json.loads((run / "report.json").read_text())["analysis"], page.read_text(encoding="utf-8")


def test_everything_is_shown_where_everything_is_there(whole: Path) -> None:
    trace(whole, cos_classifier=-0.25, cos_backbone=0.5)

    found, page = look(whole)

    assert found["gradients"]["lowest"] == {"classifier": -0.25, "backbone": 0.5} and found["gradients"]["every"] == 7
    assert "Proposition 1" in page and "opposed each other in an epoch's mean: classifier." in unescape(page)
    assert [row["what"] for row in found["calibration"]] == ["teacher", "float student", "int8 student"]
    assert [row["what"] for row in (*found["correlations"], *found["heads"])] == [
        "float student",
        "classifier",
        "auxiliary head",
    ]
    assert found["heads"][0]["split"] == "validation" and found["heads"][0]["pictures"] == 40
    assert [row["role"] for row in found["features"]["networks"]] == ["teacher", "student"] and found["features"][
        "pictures"
    ] == 40
    assert {path.stem for path in (whole / "plots").iterdir()} >= {
        "gradients",
        "correlation",
        "correlation-auxiliary",
        "features-teacher",
        "features-student",
        "calibration",
    }
    with np.load(whole / "analysis.npz") as stored:
        assert stored["features_teacher"].shape == (40, 2) and np.isfinite(stored["features_student"]).all()


def test_twice_leaves_one_section_and_the_same_bytes(whole: Path) -> None:
    first, second = look(whole)[1], look(whole)[1]
    assert first == second and second.count('id="understanding"') == 1


def test_what_another_run_showed_is_gone_when_it_is_asked_for_no_more(run: Path, tmp_path: Path) -> None:
    example.build(tmp_path / "other", n=300, seed=1)
    for one, value in ((run, 0.1), (tmp_path / "other", 0.3)):
        trace(one, cos_backbone=value)
    found, page = look(run, tmp_path / "other")
    assert len(found["against"]) == 2 and "Side by side" in page and (run / "plots" / "against-gradients.svg").is_file()

    found, page = look(run)

    assert (
        found["against"] == [] and "Side by side" not in page and not (run / "plots" / "against-gradients.svg").exists()
    )


def test_without_the_trace_the_cache_and_the_records_it_says_what_to_do(run: Path) -> None:
    found, page = look(run)
    assert found["gradients"]["sentence"].endswith(
        "record it with: compress run recipes/mobilenet.yaml --set train.trace_gradients=20"
    )
    assert "kept.json is missing" in found["features"]["sentence"] and found["features"]["sentence"].endswith(
        "compress run recipes/mobilenet.yaml"
    )
    assert (
        "was not recorded" in page and "plots/gradients" not in page and not (run / "plots" / "gradients.svg").exists()
    )
    assert len(found["calibration"]) == 3 and found["heads"] == []


def test_a_changed_cache_is_noticed(whole: Path, training: Any) -> None:
    content = json.loads((whole / "kept.json").read_text())
    content["data"]["labels"]["sha256"] = "0" * 64
    (whole / "kept.json").write_text(json.dumps(content))
    assert "not as this run left it" in look(whole)[0]["features"]["sentence"]


def test_without_scikit_learn_the_rest_still_works(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    found, page = look(whole)
    assert found["features"]["sentence"].endswith("install it with: pip install 'scikit-learn>=1.5'")
    assert found["heads"] and "Drawn by t-SNE" not in page and not (whole / "plots" / "features-teacher.svg").exists()


def test_an_onnx_teacher_has_no_features(
    run: Path, trained_teacher: Any, distilled: Any, stripped: Any, training: Any, dhkd: Any
) -> None:
    black = replace(trained_teacher, network=replace(trained_teacher.network, black_box=True, model="theirs.onnx"))
    own = dhkd.alone().model_dump(mode="json", by_alias=True)
    cache_refs.write(Kept(black, distilled, stripped, training, own), run, run.parent)
    found = look(run)[0]["features"]
    assert found["sentence"] == "The teacher theirs.onnx is an ONNX file: it gives logits and no features."
    assert [row["role"] for row in found["networks"]] == ["student"]


def test_runs_that_cannot_be_compared(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the run itself"):
        look(run, run)
    example.build(tmp_path / "other", n=300)
    (tmp_path / "other" / "history" / "student.csv").unlink()
    with pytest.raises(StageError, match="no training curve here; make the run again"):
        look(run, tmp_path / "other")


def test_a_run_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert main.main(["analyze", str(tmp_path / "empty"), "--artifacts", str(tmp_path)]) == MissingError.exit_code
    assert "finish the run with: compress run RECIPE" in capsys.readouterr().err


def test_many_classes_are_drawn_as_a_picture_and_ten_of_them_are_laid_out() -> None:
    import torch

    from compress.commands.analyze.features import draw
    from compress.report.analysis_plots import _matrix
    from compress.report.plots import svg_of
    from compress.training.evaluation import ImageSet

    labels = torch.arange(400) % 100
    pictures = ImageSet(
        torch.zeros(400, 1, 1, 3, dtype=torch.uint8), labels, torch.arange(0), torch.arange(400), "none", 1
    )
    drawn = draw(pictures, 100, 0)
    assert (
        drawn.classes == (0, 11, 22, 33, 44, 55, 66, 77, 88, 99)
        and set(drawn.labels) == set(range(10))
        and len(drawn.index) == 40
    )
    svg = svg_of(_matrix(np.linspace(-1, 1, 900).reshape(30, 30), 1.0, "A title", [str(n) for n in range(30)]))
    assert "<image" in svg and svg.count("<path") < 100
