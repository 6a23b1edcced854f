"""The pointer to the newest run, as a link and where no links can be made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from compress.cli.run_commands import find_run
from compress.core.latest_run import latest_run, mark_latest


def finished(artifacts: Path, name: str) -> Path:
    folder = artifacts / "runs" / "tiny" / name
    folder.mkdir(parents=True)
    (folder / "report.json").write_text("{}")
    return folder


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, *arguments: Any, **options: Any) -> None:
        raise OSError(1314, "A required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refused)


def test_a_link_names_the_newest_run(tmp_path: Path) -> None:
    one, two = finished(tmp_path, "1"), finished(tmp_path, "2")
    for run in (one, two):
        mark_latest(run)
        assert os.readlink(run.parent / "latest") == run.name
        assert (
            latest_run(run.parent)
            == find_run("tiny", tmp_path)
            == find_run(str(run.parent / "latest"), tmp_path).resolve()
            == run
        )
    assert sorted(path.name for path in one.parent.iterdir()) == ["1", "2", "latest"]


def test_a_text_file_names_it_where_no_link_can_be_made(tmp_path: Path, no_links: None) -> None:
    one, two = finished(tmp_path, "1"), finished(tmp_path, "2")
    for run in (one, two):
        mark_latest(run)
        assert (run.parent / "latest.txt").read_text() == f"{run.name}\n"
        assert (
            latest_run(run.parent)
            == find_run("tiny", tmp_path)
            == find_run(str(run.parent / "latest"), tmp_path)
            == run
        )
    assert sorted(path.name for path in one.parent.iterdir()) == ["1", "2", "latest.txt"]


def test_of_a_link_and_a_text_file_the_newer_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, three = (finished(tmp_path, name) for name in "123")
    mark_latest(one)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "symlink_to", lambda self, *arguments, **options: (_ for _ in ()).throw(OSError()))
        mark_latest(two)
        assert latest_run(one.parent) == two
    mark_latest(three)
    assert latest_run(one.parent) == three and not (one.parent / "latest.txt").exists()


@pytest.mark.parametrize("text", ["", "gone\n", "\udcff"])
def test_a_pointer_to_nothing_is_no_run(tmp_path: Path, text: str) -> None:
    runs = finished(tmp_path, "1").parent
    assert latest_run(runs) is None
    (runs / "latest.txt").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert latest_run(runs) is None
