"""What a run says, off and on a terminal."""

from __future__ import annotations

import io
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compress.core import console as console_module
from compress.core.console import Console, cell, duration
from compress.report.console_summary import summary_lines
from compress.report.schema import Report

ROW = {"epoch": 1, "lr": 0.05, "ce": 0.43119, "top1_validation": 0.854, "images_per_second": 1240.4}


class Lossy:
    """A loss that counts how often it is read: reading waits for a GPU."""

    def __init__(self) -> None:
        self.reads = 0

    def __float__(self) -> float:
        self.reads += 1
        return 0.5


def test_off_a_terminal_an_epoch_is_one_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    with console.training("student", 2, 3) as progress:
        for _ in range(3):
            progress.step(64, {})
        progress.epoch(ROW)
    out = capsys.readouterr().out
    assert out.startswith("  student  epoch 1/2  lr 0.05  ce 0.4312  validation 85.40 %  1,240 images/s  ")
    assert out.count("\n") == 1 and "\x1b" not in out and " left" in out


def test_a_heartbeat_at_most_every_ten_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(console_module.time, "monotonic", lambda: now[0])
    loss = Lossy()
    with Console().training("student", 2, 100) as progress:
        for _ in range(50):
            now[0] += 0.5
            progress.step(64, {"ce": loss})
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "  student  epoch 1/2  128 images/s  ce 0.5000  20 % of the epoch  1 min 30 s left",
        "  student  epoch 1/2  128 images/s  ce 0.5000  40 % of the epoch  1 min 20 s left",
    ]
    assert loss.reads == 2


def test_a_live_bar_moves_five_times_a_second_and_reads_losses_every_five_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, shown, loss = [100.0], list[str](), Lossy()
    monkeypatch.setattr(console_module.time, "monotonic", lambda: now[0])
    with Console().training("student", 2, 100) as progress:
        progress.bar = SimpleNamespace(show=lambda steps, text: shown.append(text), line=pytest.fail)
        for _ in range(48):
            now[0] += 0.25
            progress.step(64, {"ce": loss})
    assert len(shown) == 48 and all("ce 0.5000" in text for text in shown) and loss.reads == 3


def test_a_resume_counts_the_time_left_from_its_own_steps(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(console_module.time, "monotonic", lambda: now[0])
    with Console().training("student", 4, 10) as progress:
        progress.start_at(4, 4)
        now[0] = 12.0
        progress.step(64, {})
    assert capsys.readouterr().out == "  student  epoch 4/4  5 images/s  50 % of the epoch  1 min 0 s left\n"


def test_quiet_leaves_warnings_and_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(quiet=True)
    console.line("a")
    console.stage("teacher resnet20", "reused")
    console.notice("b")
    console.warn("c")
    for text, verdict in summary_lines(Report(status="passed"), Path("runs/x")):
        console.line(text, always=verdict)
    said = capsys.readouterr()
    assert said.out == "done: the recipe sets no requirement, so nothing was judged; report: runs/x/report.html\n"
    assert said.err == "warning: c\n"


def test_with_json_stdout_holds_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(json=True)
    console.stage("convert", "running", 0.12)
    console.result({"status": "passed"})
    said = capsys.readouterr()
    assert json.loads(said.out) == {"status": "passed"}
    assert said.err == f"{'convert':<28} running (0.1 s)\n"


def test_without_json_there_is_no_document(capsys: pytest.CaptureFixture[str]) -> None:
    Console().result({"status": "passed"})
    assert capsys.readouterr().out == ""


def test_the_log_has_everything_plain_and_from_the_beginning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console(quiet=True)
    console.line("before")
    console.log_to(tmp_path / "run" / "log.txt")
    console.warn("careful")
    with console.training("student", 1, 1) as progress:
        progress.epoch(ROW)
    console.close()
    console.save_log(tmp_path / "copy.txt")
    lines = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert lines[:2] == ["before", "warning: careful"] and lines[2].startswith("  student  epoch 1/1  lr 0.05")
    assert (tmp_path / "copy.txt").read_text().splitlines() == lines


def drained(terminal: int) -> str:
    """What waits to be read; a single read may give a part of it."""
    os.set_blocking(terminal, False)
    parts = []
    with suppress(BlockingIOError):
        while part := os.read(terminal, 1 << 16):
            parts.append(part)
    return b"".join(parts).decode()


def test_on_a_terminal_a_bar_lives_and_epochs_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    pty = pytest.importorskip("pty", reason="there is no terminal to open on Windows")
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "160")
        monkeypatch.setattr(console_module, "REFRESH_SECONDS", 0.0)
        console = Console()
        with console.training("student [x]", 2, 2) as progress:
            progress.step(64, {"ce": 0.5})
            progress.step(64, {"ce": 0.25})
            progress.epoch(ROW)
            console.line("said in between")
            progress.step(64, {"ce": 0.125})
            progress.bar.progress.refresh()  # draw now, not at the next of the four refreshes a second
        terminal.flush()
        text = drained(master)
    os.close(master)
    assert "\x1b[" in text
    assert "student [x]  epoch 1/2  lr 0.05  ce 0.4312  validation 85.40 %" in text
    assert "said in between" in text
    assert "epoch 2/2" in text


def test_a_reader_that_went_away_does_not_end_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, written = os.pipe()
    os.close(read)
    with os.fdopen(written, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        console = Console()
        console.line("to nobody")
        console.line("and again")
        console.save_log(tmp_path / "log.txt")
    assert (tmp_path / "log.txt").read_text() == "to nobody\nand again\n"


def test_a_file_name_that_is_no_text_can_be_said_and_logged(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    strict = io.TextIOWrapper(Writes(), encoding="utf-8", write_through=True)  # type: ignore[arg-type]
    console_module.print_line(name, strict)
    assert strict.buffer.parts == [rb"caf\udce9.txt" + b"\n"]  # type: ignore[attr-defined]
    console = Console(quiet=True)
    console.log_to(tmp_path / "log")
    console.line(name)
    console.close()
    console.save_log(tmp_path / "saved")
    assert (tmp_path / "log").read_bytes() == (tmp_path / "saved").read_bytes() == rb"caf\udce9.txt" + b"\n"


def test_who_closed_stdout_hears_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    Console().line("to nobody")


class Writes(io.RawIOBase):
    """What reaches the system, write by write."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, part: Any) -> int:
        self.parts.append(bytes(part))
        return len(part)


def test_a_line_is_one_write_where_nothing_is_buffered() -> None:
    raw = Writes()
    console_module.print_line("a line", io.TextIOWrapper(raw, write_through=True))  # type: ignore[arg-type]  # as PYTHONUNBUFFERED=1 makes it
    assert raw.parts == [b"a line\n"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.06, "0.1 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_cells_of_the_history() -> None:
    assert [cell(name, value) for name, value in ROW.items()][1:] == [
        "lr 0.05",
        "ce 0.4312",
        "validation 85.40 %",
        "1,240 images/s",
    ]
