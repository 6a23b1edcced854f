"""A run's output: plain lines or a live bar on a terminal, and all of it as plain lines in the run's log."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, SupportsFloat, TextIO

REFRESH_SECONDS = 0.2  # how often a step may touch the live bar
HEARTBEAT_SECONDS = 10.0  # how often a step may print a plain line
LOSS_SECONDS = 5.0  # how often the live bar reads losses, which waits for the device
UNWRITABLE = "backslashreplace"  # how to print a file name that is not valid text


class Console:
    """A run's output: lines for people on stdout, warnings on stderr, everything in the log.

    Lines printed before `log_to` are kept for the log.
    """

    def __init__(self, quiet: bool = False, json: bool = False, log: Path | None = None, silent: bool = False) -> None:
        """Create a console.

        Args:
            quiet: Print only warnings and the verdict.
            json: Print lines for people on stderr, so that stdout holds one JSON document.
            log: The log file, where it is known already.
            silent: Print nothing; for every rank but the first.
        """
        self.quiet, self.json, self.silent = quiet or silent, json, silent
        self._kept: list[str] = []
        self._log: TextIO | None = None
        if log is not None:
            self.log_to(log)

    @property
    def out(self) -> TextIO:
        """The stream for people; looked up each time, because a live bar puts itself in between."""
        return sys.stderr if self.json else sys.stdout

    def line(self, text: str, *, always: bool = False) -> None:
        """Print one plain line; `always`: even when quiet."""
        self._record(text)
        if (always and not self.silent) or not self.quiet:
            print_line(text, self.out)

    def notice(self, text: str) -> None:
        """Print something that the user may want to know."""
        self.line(f"note: {text}")

    def warn(self, text: str) -> None:
        """Print something that is probably wrong to stderr, even when quiet."""
        self._record(f"warning: {text}")
        if not self.silent:
            print_line(f"warning: {text}", sys.stderr)

    def stage(self, name: str, state: str, seconds: float | None = None) -> None:
        """Print the heading of a stage: `teacher resnet20    reused (0.1 s)`."""
        self.line(f"{name:<28} {state}{'' if seconds is None else f' ({duration(seconds)})'}")

    def result(self, data: Any) -> None:
        """Print the answer as JSON on stdout, with --json only. None: another rank prints it."""
        if self.json and data is not None:
            print_line(json.dumps(data, indent=1), sys.stdout)

    @contextmanager
    def training(self, title: str, epochs: int, steps: int) -> Iterator[TrainingProgress]:
        """Show a training of `epochs` times `steps` batches: a live bar on a terminal, else lines."""
        begin = TrainingProgress(self, title, epochs, steps)
        if self.quiet or not self.out.isatty() or os.environ.get("TERM") == "dumb":
            yield begin
            return
        from compress.core.progress_bar import live

        with live(self.out, title, epochs * steps) as begin.bar:
            yield begin

    def log_to(self, path: Path) -> None:
        """Write everything to this file as well from now on, beginning with what was printed before."""
        self.close()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._log = path.open("a", encoding="utf-8", errors=UNWRITABLE, buffering=1)
        self._log.writelines(text + "\n" for text in self._kept)

    def save_log(self, path: Path) -> None:
        """Write everything printed so far to a file."""
        path.write_text("".join(text + "\n" for text in self._kept), encoding="utf-8", errors=UNWRITABLE)

    def close(self) -> None:
        """Close the log."""
        if self._log is not None:
            self._log.close()
            self._log = None

    def _record(self, text: str) -> None:
        self._kept.append(text)
        if self._log is not None:
            self._log.write(text + "\n")


class Bar(Protocol):
    """The live bar of a terminal."""

    def show(self, steps: int, text: str) -> None: ...
    def line(self, text: str) -> None: ...


class TrainingProgress:
    """The progress of one training.

    A step costs one clock reading. Losses, whose reading waits for a GPU, are read every few seconds at most.
    """

    def __init__(self, console: Console, title: str, epochs: int, steps: int) -> None:
        self.console, self.title, self.epochs, self.steps = console, title, epochs, max(steps, 1)
        self.bar: Bar | None = None
        self.epoch_number, self.steps_done, self.images = 1, 0, 0
        self.steps_here = 0  # in this process; a resumed training has done others before
        self.begin = self.shown = time.monotonic()
        self.losses_read = 0.0
        self.losses: list[str] = []
        self.last_epoch = ""

    def start_at(self, epoch: int, step: int) -> None:
        """Begin in the middle, after a resume: the 1-based epoch and how many of its steps are done."""
        self.epoch_number, self.steps_done = epoch, step

    def warn(self, text: str) -> None:
        """Print a warning."""
        self.console.warn(text)

    def step(self, images: int, losses: Mapping[str, SupportsFloat]) -> None:
        """Record that one batch is done."""
        self.steps_done += 1
        self.steps_here += 1
        self.images += images
        now = time.monotonic()
        if now - self.shown < (REFRESH_SECONDS if self.bar else HEARTBEAT_SECONDS):
            return
        self.shown = now
        if not self.losses or now - self.losses_read >= LOSS_SECONDS:
            self.losses_read = now
            self.losses = [f"{name} {float(loss):.4f}" for name, loss in losses.items()]
        parts = [f"{self.images / max(now - self.begin, 1e-9):,.0f} images/s", *self.losses]
        text = f"epoch {self.epoch_number}/{self.epochs}  {'  '.join(parts)}"
        if self.bar:
            self.bar.show(self._total(), f"{text}  {self.last_epoch}".rstrip())
        else:
            share = 100 * self.steps_done / self.steps
            self.console.line(f"  {self.title}  {text}  {share:.0f} % of the epoch  {self._left(now)}")

    def epoch(self, row: Mapping[str, float]) -> None:
        """Record that one epoch is done; `row` is its line of history.csv."""
        number = int(row.get("epoch", self.epoch_number))
        self.epoch_number, self.steps_done = number + 1, 0
        now = time.monotonic()
        self.shown = now
        cells = "  ".join(cell(name, value) for name, value in row.items() if name != "epoch")
        text = f"  {self.title}  epoch {number}/{self.epochs}  {cells}"
        left = f"  {self._left(now)}" if number < self.epochs else ""
        if self.bar is None:
            self.console.line(text + left)
            return
        self.console._record(text + left)
        self.bar.line(text)
        accuracy = row.get("top1_validation")
        self.last_epoch = "" if accuracy is None else f"validation {100 * accuracy:.2f} %"
        self.bar.show(self._total(), f"epoch {min(number + 1, self.epochs)}/{self.epochs}  {self.last_epoch}".rstrip())

    def _total(self) -> int:
        return (self.epoch_number - 1) * self.steps + self.steps_done

    def _left(self, now: float) -> str:
        """Return the time left, estimated from the steps of this process."""
        if not self.steps_here:
            return ""
        remaining = self.epochs * self.steps - self._total()
        return f"{duration((now - self.begin) / self.steps_here * max(remaining, 0))} left"


def cell(name: str, value: float) -> str:
    """Format a column of history.csv: `validation 85.40 %`, `1,240 images/s`, `ce 0.4312`."""
    if name == "top1_validation":
        return f"validation {100 * value:.2f} %"
    if name == "images_per_second":
        return f"{value:,.0f} images/s"
    return f"{name} {value:.4g}" if name == "lr" else f"{name} {value:.4f}"


def duration(seconds: float) -> str:
    """Format seconds: `0.1 s`, `42 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def print_line(text: str, stream: TextIO | None) -> None:
    """Print a line in one piece, even where Python does not buffer: other processes may write into the same pipe.

    A reader that has gone (`| head`) or was never there (`>&-`) does not end a training: the rest goes to the log only.
    """
    if stream is None:
        return
    try:
        try:
            stream.write(f"{text}\n")
        except UnicodeEncodeError:
            stream.write(f"{text}\n".encode(stream.encoding, UNWRITABLE).decode(stream.encoding))
        stream.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def table(rows: Sequence[tuple[str, ...]]) -> None:
    """Print left-aligned columns; the last one is not padded."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print_line("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip(), sys.stdout)
