"""The content-addressed store: when a stage runs, when it does not, and what a crash leaves."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from compress.core.console import Console
from compress.core.errors import StageError
from compress.core.files import write_atomically
from compress.core.records.base import CHECKPOINT, File
from compress.core.store import Context, Stage, Store
from compress.recipe.schema import Validate


@dataclass(frozen=True)
class Made:
    """What the test's stage answers."""

    file: File
    number: int
    extra: tuple[str, ...] = ()


@dataclass(frozen=True)
class Input:
    """An input of the test's stage. `seconds` is circumstance."""

    file: File
    name: str
    seconds: float = 0.0


def make_stage(calls: list[Any], *, name: str = "stage", version: int = 1) -> Stage:
    def run(config: Validate, *, context: Context, **inputs: Any) -> Made:
        calls.append(inputs)
        path = context.work / "sub" / "made.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{config.seed}")
        return Made(File.of(path), len(calls), ("a",))

    return Stage(name, version, run, Made)


def make_store(root: Path, force: tuple[str, ...] = ()) -> Store:
    return Store(root, "cpu", Console(quiet=True), force)


@pytest.fixture
def source(tmp_path: Path) -> File:
    (tmp_path / "input.txt").write_text("content")
    return File.of(tmp_path / "input.txt")


def entries(root: Path) -> list[str]:
    return sorted(path.suffix for path in (root / "cache" / "stage").iterdir())


def test_a_second_run_reuses_the_result(tmp_path, source, capsys):
    calls: list[Any] = []
    stage, store = make_stage(calls), Store(tmp_path / "a", "cpu", Console())
    first = store.run(stage, Validate(), label="x", one=Input(source, "n"))
    assert (store.reused, list(store.seconds)) == ([], ["stage x"])
    again = Store(tmp_path / "a", "cpu", Console())
    assert again.run(stage, Validate(), label="x", one=Input(source, "n")) == first
    assert len(calls) == 1 and again.reused == ["stage x"]
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["stage", "x", "running"],
        ["stage", "x", "reused"],
    ]
    assert first.file.path.read_text() == "0" and first.file.path.is_relative_to(tmp_path / "a" / "cache" / "stage")
    assert entries(tmp_path / "a") == ["", ".lock"]


def test_a_reused_stage_tells_the_seconds_that_it_took_when_it_was_made(tmp_path):
    def run(config: Validate, *, context: Context) -> Made:
        time.sleep(0.1)
        return make_stage([]).run(config, context=context)

    stage, store, again = Stage("stage", 1, run, Made), make_store(tmp_path), make_store(tmp_path)
    store.run(stage, Validate())
    again.run(stage, Validate())
    assert store.seconds["stage"] == again.seconds["stage"] >= 0.1


@pytest.mark.parametrize("training", [True, False])
def test_the_seconds_of_an_interrupted_training_are_those_of_its_parts(tmp_path, training):
    """A stage without a checkpoint begins anew: what it did before is lost."""
    parts: list[BaseException | None] = [KeyboardInterrupt(), StageError("a loss"), None]

    def run(config: Validate, *, context: Context) -> Made:
        time.sleep(0.1)
        if training:
            (context.work / CHECKPOINT).touch()
        if (error := parts.pop(0)) is not None:
            raise error
        return make_stage([]).run(config, context=context)

    stage = Stage("stage", 1, run, Made)
    for error in (KeyboardInterrupt, StageError):
        with pytest.raises(error):
            make_store(tmp_path).run(stage, Validate())
    store = make_store(tmp_path)
    made = store.run(stage, Validate())
    assert store.seconds["stage"] >= 0.3 if training else 0.1 <= store.seconds["stage"] < 0.3
    assert sorted(path.name for path in made.file.path.parents[1].iterdir()) == ["stage.json", "sub"]


def test_a_miss_on_each_ingredient_but_not_on_paths_and_circumstance(tmp_path, source):
    calls: list[Any] = []
    store = make_store(tmp_path / "a")
    elsewhere = tmp_path / "elsewhere.bin"
    shutil.copyfile(source.path, elsewhere)
    (tmp_path / "other.txt").write_text("other content")
    base = Input(source, "n")

    def runs(stage: Stage, config: Validate, **inputs: Any) -> bool:
        before = len(calls)
        store.run(stage, config, **inputs)
        return len(calls) > before

    stage = make_stage(calls)
    assert runs(stage, Validate(), one=base, two={"torch": "2"})
    assert not runs(stage, Validate(), two={"torch": "2"}, one=base)
    assert not runs(stage, Validate(), one=replace(base, file=File.of(elsewhere), seconds=9.0), two={"torch": "2"})
    assert runs(make_stage(calls, name="stage2"), Validate(), one=base, two={"torch": "2"})
    assert runs(make_stage(calls, version=2), Validate(), one=base, two={"torch": "2"})
    assert runs(stage, Validate(seed=1), one=base, two={"torch": "2"})
    assert runs(stage, Validate(), one=replace(base, name="m"), two={"torch": "2"})
    assert runs(stage, Validate(), one=base, two={"torch": "3"})
    assert runs(stage, Validate(), one=base, three={"torch": "2"})
    assert runs(stage, Validate(), one=replace(base, file=File.of(tmp_path / "other.txt")), two={"torch": "2"})
    assert len(calls) == 8


def test_a_crash_leaves_a_partial_that_is_resumed_inside(tmp_path):
    seen: list[list[str]] = []

    def run(config: Validate, *, context: Context) -> Made:
        seen.append(sorted(path.name for path in context.work.glob("part*")))
        (context.work / f"part{len(seen)}").write_text("x")
        if len(seen) < 3:
            raise (KeyboardInterrupt if len(seen) == 1 else StageError)("stop")
        return Made(File.of(context.work / "part1"), 1)

    stage = Stage("stage", 1, run, Made)
    for error in (KeyboardInterrupt, StageError):
        with pytest.raises(error):
            make_store(tmp_path).run(stage, Validate())
        assert entries(tmp_path) == [".lock", ".partial"]
    result = make_store(tmp_path).run(stage, Validate())
    assert seen == [[], ["part1"], ["part1", "part2"]]
    assert entries(tmp_path) == ["", ".lock"] and result.file.path.is_file()


def tamper(file: File) -> None:
    file.path.write_bytes(b"9" * file.bytes)


@pytest.mark.parametrize("change", [tamper, lambda file: file.path.unlink(), lambda file: file.path.write_text("")])
def test_a_changed_file_is_noticed_and_made_again(tmp_path, capsys, change):
    calls: list[Any] = []
    stage = make_stage(calls)
    first = make_store(tmp_path).run(stage, Validate())
    change(first.file)
    store = make_store(tmp_path)
    second = store.run(stage, Validate())
    assert len(calls) == 2 and store.reused == []
    assert "made.txt is not what the stage wrote; the stage runs again" in capsys.readouterr().err
    assert second.file.path.read_text() == "0" and second.file.sha256 == first.file.sha256


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"result": 3}',
        '{"seconds": 1}',
        '{"seconds": 1, "result": {"file": 3}}',
        "\udcff",
        '{"seconds": 1, "result": {"number": 1, "file": {"path": "x"}}}',
    ],
)
def test_an_unreadable_record_is_said_and_made_again(tmp_path, capsys, text):
    calls: list[Any] = []
    stage = make_stage(calls)
    folder = make_store(tmp_path).run(stage, Validate()).file.path.parents[1]
    (folder / "stage.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    make_store(tmp_path).run(stage, Validate())
    assert len(calls) == 2
    assert "stage.json cannot be read" in capsys.readouterr().err
    assert json.loads((folder / "stage.json").read_text())["result"]["file"]["path"] == "sub/made.txt"


def test_a_relative_root_works_and_the_store_can_be_moved(tmp_path, monkeypatch, capsys):
    calls: list[Any] = []
    stage = make_stage(calls)
    monkeypatch.chdir(tmp_path)
    first = make_store(Path("artifacts")).run(stage, Validate())
    assert first.file.path.is_absolute()
    assert make_store(Path("artifacts")).run(stage, Validate()) == first
    (tmp_path / "far" / "away").mkdir(parents=True)
    shutil.move(tmp_path / "artifacts", tmp_path / "far" / "away" / "b")
    monkeypatch.chdir(tmp_path / "far")
    moved = make_store(Path("away/b")).run(stage, Validate())
    assert len(calls) == 1 and capsys.readouterr().err == ""
    assert moved.file.path == tmp_path / "far" / "away" / "b" / first.file.path.relative_to(tmp_path / "artifacts")
    assert File.of(moved.file.path).sha256 == first.file.sha256


def test_force_runs_the_named_stage_only(tmp_path):
    calls: list[Any] = []
    one, two = make_stage(calls, name="one"), make_stage(calls, name="two")
    for store in (make_store(tmp_path), make_store(tmp_path, force=("two",))):
        store.run(one, Validate())
        store.run(two, Validate())
    assert len(calls) == 3 and store.reused == ["one"]


def test_a_forced_run_begins_anew_and_goes_on_after_an_interrupt(tmp_path):
    seen: list[list[str]] = []

    def run(config: Validate, *, context: Context) -> Made:
        seen.append(sorted(path.name for path in context.work.glob("check*")))
        (context.work / "checkpoint").write_text("x")
        if len(seen) == 2:
            raise KeyboardInterrupt
        return Made(File.of(context.work / "checkpoint"), 1)

    stage = Stage("stage", 1, run, Made)
    make_store(tmp_path).run(stage, Validate())
    with pytest.raises(KeyboardInterrupt):
        make_store(tmp_path, force=("stage",)).run(stage, Validate())
    make_store(tmp_path, force=("stage",)).run(stage, Validate())
    assert seen == [[], [], ["checkpoint"]]


def test_a_checkpoint_goes_when_the_result_stands_and_not_before(tmp_path):
    tries: list[bool] = []

    def run(config: Validate, *, context: Context) -> Made:
        tries.append((context.work / CHECKPOINT).is_file())
        (context.work / CHECKPOINT).write_text("where it stands")
        (context.work / "made").write_text("x")
        if len(tries) == 1:
            raise KeyboardInterrupt
        return Made(File.of(context.work / "made"), 1)

    stage = Stage("stage", 1, run, Made)
    with pytest.raises(KeyboardInterrupt):
        make_store(tmp_path).run(stage, Validate())
    made = make_store(tmp_path).run(stage, Validate())
    assert tries == [False, True] and sorted(path.name for path in made.file.path.parent.iterdir()) == [
        "made",
        "stage.json",
    ]


def _slow(config: Validate, *, context: Context, log: str) -> Made:
    with open(log, "a") as stream:
        stream.write(f"{os.getpid()}\n")
    time.sleep(0.3)
    (context.work / "made.txt").write_text("x")
    return Made(File.of(context.work / "made.txt"), 1)


def _child(root: Path, log: str) -> None:
    made = make_store(root).run(Stage("stage", 1, _slow, Made), Validate(), log=log)
    assert made.file.path.is_file()


@pytest.mark.parametrize("kind", ["processes", "threads"])
def test_two_runs_at_once_do_the_work_once(tmp_path, kind):
    log = tmp_path / "log"
    make: Any = (
        multiprocessing.get_context("spawn").Process if kind == "processes" else threading.Thread
    )  # a fork of a process with threads may hang
    workers = [make(target=_child, args=(tmp_path / "a", str(log))) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    if kind == "processes":
        assert [worker.exitcode for worker in workers] == [0, 0]
    assert len(log.read_text().splitlines()) == 1
    assert entries(tmp_path / "a") == ["", ".lock"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_stage_error(tmp_path, number):
    def run(config: Validate, *, context: Context) -> Made:
        raise OSError(number, os.strerror(number), str(context.work / "big"))

    with pytest.raises(
        StageError, match=r"stage x: the disk under .* is full; free some space and run the same command again"
    ) as raised:
        make_store(tmp_path).run(Stage("stage", 1, run, Made), Validate(), label="x")
    assert raised.value.exit_code == 4 and entries(tmp_path) == [".lock", ".partial"]


def test_another_disk_error_is_not_called_full(tmp_path):
    def run(config: Validate, *, context: Context) -> Made:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        make_store(tmp_path).run(Stage("stage", 1, run, Made), Validate())


def test_a_real_full_disk_while_the_record_is_written(tmp_path, monkeypatch):
    written = Path.write_text

    def full(self: Path, *arguments: Any, **options: Any) -> int:
        if self.name == "stage.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(self, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StageError, match="is full"):
        make_store(tmp_path).run(make_stage([]), Validate())


def test_atomic_writing_replaces_whole_files(tmp_path):
    path = tmp_path / "a.bin"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two" and [p.name for p in tmp_path.iterdir()] == ["a.bin"]
