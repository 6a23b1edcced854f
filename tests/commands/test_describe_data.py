"""`compress data`: what it says of photos, of clips and of arrays."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.cli.main import main
from tests.support.clip_folders import CLIP, write_clips

RECIPE = "teacher: {{candidates: [{{model: resnet20}}]}}\nstudent: {{model: mobilenet_v2}}\ndata: {{{data}}}\n"


def said(tmp_path: Path, capsys: pytest.CaptureFixture[str], data: str) -> str:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(data=data))
    capsys.readouterr()
    assert main(["data", str(recipe), "-q", "--artifacts", str(tmp_path / "artifacts")]) == 0
    return capsys.readouterr().out


def test_clips_are_counted_and_their_overlap_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_clips(tmp_path / "clips", clips=10, frames=8)
    out = said(tmp_path, capsys, "source: folder, root: clips, image_size: 64")
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["class", "train", "validation", "test"]
    table = {line[0]: [int(count) for count in line[1:]] for line in lines[1:4]}
    assert table.keys() == {"bad", "good", "all"} and sum(table["all"]) == 160 and sum(table["bad"]) == 80
    assert "sizes: 160 48x48" in out and "formats: 160 PNG RGB" in out
    assert "160 of 160 images are smaller than data.image_size 64" in out
    assert "have a near-duplicate" in out and r"data.group: '([^/]+/[^/]+)_\d+'" in out
    assert f"{table['all'][2]} test images can certify a drop of" in out and "points where 5% of the answers" in out


def test_groups_are_counted_instead(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_clips(tmp_path / "clips", clips=10, frames=4)
    out = said(tmp_path, capsys, f"source: folder, root: clips, image_size: 32, group: '{CLIP}'")
    assert "no near-duplicates across the parts" in out and "groups: " in out
    assert "in the test part decide about no accuracy: at least 10 are needed" in out


def test_missing_data_is_exit_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(data="source: folder, root: nowhere"))
    assert main(["data", str(recipe), "--artifacts", str(tmp_path / "artifacts")]) == 3
    assert "is not a folder" in capsys.readouterr().err


def test_the_page_shows_counts_views_and_pairs_and_no_image_where_none_may_be_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clips(tmp_path / "clips", clips=6, frames=6)
    recipe, page = tmp_path / "recipe.yaml", tmp_path / "pages" / "data.html"
    recipe.write_text(RECIPE.format(data="source: folder, root: clips, image_size: 32"))
    command = ["data", str(recipe), "-q", "--artifacts", str(tmp_path / "artifacts"), "--html", str(page)]
    assert main(command) == 0 and f"page: {page}" in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    views = text[text.index('id="views"') : text.index('id="near_duplicates"')]
    assert views.count("<img ") == 2 * 6  # of each class the evaluation view and five training views
    assert len(set(part.split('"')[0] for part in views.split('src="')[1:])) > 6  # training views differ
    assert '<th scope="row">bad</th>' in text and "have a near-duplicate" in text and "<script" not in text

    assert main([*command, "--set", "report={images: false}"]) == 0
    assert "<img " not in page.read_text(encoding="utf-8")
