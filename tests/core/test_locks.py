"""Locks between real processes: who waits, who is told, and what a holder leaves that was killed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from compress.core.console import Console
from compress.core.locks import locked
from compress.core.records.base import File
from compress.core.store import Context, Stage, Store

HOLD = """
import sys, time
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell may ignore it
from pathlib import Path
from compress.core.locks import locked

with locked(Path(sys.argv[1]), lambda holder: print(f"waiting{holder}", flush=True)):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def holder(lock: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that takes the lock and keeps it; it prints what happens to it."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait(timeout=60)
        stdout(process).close()


def stdout(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None
    return process.stdout


def test_a_waiter_is_told_at_once_who_holds_the_lock_and_goes_on_when_it_is_free(tmp_path: Path) -> None:
    lock, said = tmp_path / "x.lock", list[str]()
    with holder(lock) as first, holder(lock) as second:
        lines = {stdout(process).readline().strip(): process for process in (first, second)}
        holding = lines.pop("held")
        assert list(lines) == [f"waiting (pid {holding.pid})"]
        (waiting,) = lines.values()
        begin = time.monotonic()
        holding.terminate()
        assert stdout(waiting).readline().strip() == "held" and time.monotonic() - begin < 30
    with locked(lock, said.append):
        assert said == []  # both are gone


def test_a_killed_holder_leaves_nothing_locked(tmp_path: Path) -> None:
    lock, said = tmp_path / "x.lock", list[str]()
    with holder(lock) as process:
        assert stdout(process).readline().strip() == "held"
        process.kill()
        process.wait(timeout=60)
    assert (tmp_path / "x.lock.pid").read_text() == f"{process.pid}\n"  # it could not take it away
    with locked(lock, said.append):
        assert said == [] and (tmp_path / "x.lock.pid").read_text() == f"{os.getpid()}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["x.lock"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_ctrl_c_ends_a_wait(tmp_path: Path) -> None:
    lock = tmp_path / "x.lock"
    with locked(lock), holder(lock) as process:
        assert stdout(process).readline().strip() == f"waiting (pid {os.getpid()})"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) != 0
    with locked(lock, pytest.fail):
        pass


def test_a_run_that_waits_for_another_reports_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(config: None, *, context: Context) -> File:
        (context.work / "made").write_text("x")
        return File.of(context.work / "made")

    stage = Stage("stage", 1, run, File)
    Store(tmp_path, "cpu", Console(quiet=True)).run(stage, None)
    (lock,) = (tmp_path / "cache" / "stage").glob("*.lock")
    for text, shown in (
        (f"{os.getpid()}\n", f"stage                        waiting for another run (pid {os.getpid()})"),
        ("", "stage                        waiting for another run"),
    ):
        with locked(lock):
            lock.with_name(f"{lock.name}.pid").write_text(text)
            waiter = threading.Thread(target=lambda: Store(tmp_path, "cpu", Console()).run(stage, None))
            waiter.start()
            out, until = "", time.monotonic() + 60
            while "\n" not in out and time.monotonic() < until:
                time.sleep(0.02)
                out += capsys.readouterr().out
            assert out == f"{shown}\n" and waiter.is_alive()
        waiter.join(timeout=60)
        assert capsys.readouterr().out.split() == ["stage", "reused"]


def test_a_lock_without_room_for_a_number_is_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, *arguments: Any, **options: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with locked(tmp_path / "x.lock"):
        assert [path.name for path in tmp_path.iterdir()] == ["x.lock"]
        said = list[str]()
        waiter = threading.Thread(target=lambda: locked(tmp_path / "x.lock", said.append).__enter__(), daemon=True)
        waiter.start()
        until = time.monotonic() + 60
        while not said and time.monotonic() < until:
            time.sleep(0.01)
        assert said == [""]
    waiter.join(timeout=60)
