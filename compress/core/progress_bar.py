"""The live progress bar of a terminal, by rich. Imported only when there is a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class LiveBar:
    """One task of a rich progress display."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self.progress, self.task = progress, task

    def show(self, steps: int, text: str) -> None:
        """Move to `steps` done and show `text` beside the bar."""
        self.progress.update(self.task, completed=steps, text=escape(text))

    def line(self, text: str) -> None:
        """Print a line that stays, above the bar."""
        self.progress.console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def live(stream: TextIO, title: str, total: int) -> Iterator[LiveBar]:
    """Show a bar of `total` steps while the block runs. Its lines stay when it is gone."""
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=stream), transient=True, refresh_per_second=4) as progress:
        yield LiveBar(progress, progress.add_task(escape(title), total=total, text=""))
