"""The content-addressed store of stage results: run a stage once, reuse its result for every later recipe.

A result lives in `<root>/cache/<stage>/<key>/` with `stage.json`. The key is the sha256 of [stage, version, config,
inputs], in which files count by content. A stage writes into `<key>.partial/`, which is renamed when it is whole;
a crash leaves the partial folder, and training resumes inside it. On reuse the sha256 of every file is checked; a stage
whose files have changed runs again, with a warning.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.core.console import Console
from compress.core.distributed import ALONE, Group
from compress.core.errors import StageError
from compress.core.locks import locked
from compress.core.malloc import give_back_freed_memory
from compress.core.records.base import CHECKPOINT, File, from_json, sha256_of, to_json

SPENT = "seconds"  # a file in a partial folder, beside a checkpoint: seconds until the stage was interrupted


@dataclass(frozen=True)
class Stage:
    """A step of the workflow whose result is cached.

    Attributes:
        name: Its folder in the cache.
        version: Raised when the numbers that the stage makes change.
        run: `run(config, *, context, **inputs) -> result`. The names of its inputs are part of the key.
        result: The record that it returns.
        together: Whether all ranks work on it (a training); other stages run on rank 0 alone.
    """

    name: str
    version: int
    run: Callable[..., Any]
    result: type
    together: bool = False


@dataclass(frozen=True)
class Context:
    """What a stage gets beside config and inputs; never part of a key. `work` is the folder that it writes into."""

    work: Path
    device: str
    console: Console
    cache: Path  # the store's root, for content-addressed side caches (teacher logits)
    group: Group = ALONE


class StopAfter(Exception):
    """Ends a run whose `--until` leaves out the stage that comes next: the stages asked for are whole."""


@dataclass
class Store:
    """Runs stages, or finds their results.

    Attributes:
        root: The artifacts folder.
        device: Where trainings run, as torch names it.
        console: Where the run prints.
        force: Names of stages to run again.
        group: The processes of the run.
        excluded: Names of stages that `--until` leaves out.
        seconds: By title, for the report; a reused stage has the seconds that it took when it ran.
        reused: Titles of the reused stages, for the report.
    """

    root: Path
    device: str
    console: Console
    force: tuple[str, ...] = ()
    group: Group = ALONE
    excluded: tuple[str, ...] = ()
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    reused: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        # Records hold absolute paths, so that they stay valid when the working folder changes.
        self.root = self.root.resolve() if ".." in self.root.parts else self.root.absolute()

    def includes(self, name: str) -> bool:
        """Return whether the run goes as far as the stage of this name."""
        return name not in self.excluded

    def reach(self, name: str) -> None:
        """Raise StopAfter where `--until` leaves out the stage of this name."""
        if not self.includes(name):
            raise StopAfter

    def run(self, stage: Stage, config: Any, *, label: str = "", **inputs: Any) -> Any:
        """Return the stage's result, the same in every process: from the cache where it is whole, else by running it.

        Raises StopAfter where `--until` leaves the stage out.
        """
        self.reach(stage.name)
        if not self.group.is_main:
            if stage.together and self.group.broadcast(None):  # rank 0 did not find it
                self._run_in_temp_dir(stage, config, inputs)
            return self.group.broadcast(None)
        title = f"{stage.name} {label}".strip()
        folder = self.root / "cache" / stage.name / sha256_of([stage.name, stage.version, config, inputs])
        with locked(
            folder.with_suffix(".lock"), lambda holder: self.console.stage(title, f"waiting for another run{holder}")
        ):
            found = None if stage.name in self.force else self._find(stage, folder, title)
            if stage.together:
                self.group.broadcast(found is None)
            if found is not None:
                self.reused.append(title)
                self.console.stage(title, "reused")
            else:
                self.console.stage(title, "running")
                with self._unfinished(stage, folder, title) as (partial, begin):
                    made = stage.run(config, context=self._context(partial), **inputs)
                    found = _keep(stage, config, made, partial, folder, begin)
        result, self.seconds[title] = found
        return self.group.broadcast(result)

    def run_uncached(self, stage: Stage, config: Any, *, label: str = "", **inputs: Any) -> Any:
        """Return the result of a stage that asks another machine and is never cached; it may hold no files."""
        self.reach(stage.name)
        if not self.group.is_main:
            return self.group.broadcast(None)
        title = f"{stage.name} {label}".strip()
        self.console.stage(title, "running")
        begin = time.monotonic()
        result = self._run_in_temp_dir(stage, config, inputs)
        self.seconds[title] = round(time.monotonic() - begin, 3)
        return self.group.broadcast(result)

    def _run_in_temp_dir(self, stage: Stage, config: Any, inputs: dict[str, Any]) -> Any:
        """Run a stage in a folder that is deleted afterwards."""
        with tempfile.TemporaryDirectory() as work:
            return stage.run(config, context=self._context(Path(work)), **inputs)

    def _context(self, work: Path) -> Context:
        return Context(work, self.device, self.console, self.root / "cache", self.group)

    def _find(self, stage: Stage, folder: Path, title: str) -> tuple[Any, float] | None:
        """Return the stored result and the seconds it took; None if there is none or it is not whole."""
        try:
            record = json.loads((folder / "stage.json").read_text())
            result, seconds = located(from_json(stage.result, record["result"]), folder), float(record["seconds"])
        except FileNotFoundError:
            return None
        except (ValueError, LookupError, TypeError, AttributeError) as error:  # not JSON, or not this stage's record
            self.console.warn(f"{title}: {folder / 'stage.json'} cannot be read ({error}); the stage runs again")
            return None
        for file in files(result):
            if not file.path.is_file() or File.of(file.path).sha256 != file.sha256:
                self.console.warn(f"{title}: {file.path} is not what the stage wrote; the stage runs again")
                return None
        return result, seconds

    @contextmanager
    def _unfinished(self, stage: Stage, folder: Path, title: str) -> Iterator[tuple[Path, float]]:
        """Provide the folder that a stage writes into, and when it began, interrupted parts included.

        A training that is stopped leaves its checkpoint there with the seconds spent, and goes on from it.
        """
        partial = folder.with_suffix(".partial")
        # Where only a partial folder is left, a forced run was interrupted: it goes on.
        if stage.name in self.force and folder.exists():
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(folder)
        begin = time.monotonic() - _spent(partial)
        try:
            partial.mkdir(parents=True, exist_ok=True)
            yield partial, begin
        except BaseException as error:
            with suppress(OSError):
                if (partial / CHECKPOINT).is_file():
                    (partial / SPENT).write_text(f"{time.monotonic() - begin:.3f}")
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StageError(
                    f"{title}: the disk under {self.root} is full; free some space and run the same command again"
                ) from error
            raise


def _keep(stage: Stage, config: Any, result: Any, partial: Path, folder: Path, begin: float) -> tuple[Any, float]:
    """Store a stage's result and move its folder to its place; return the result there and the seconds it took."""
    give_back_freed_memory()  # a training has kept it
    seconds = round(time.monotonic() - begin, 3)
    record = {
        "stage": stage.name,
        "version": stage.version,
        "config": to_json(config.model_dump(mode="json") if hasattr(config, "model_dump") else config),
        "seconds": seconds,
        "result": to_json(relative(result, partial)),
    }
    (partial / "stage.json").write_text(json.dumps(record, indent=1) + "\n")
    (partial / SPENT).unlink(missing_ok=True)
    # The result is complete, and the optimizer's state would double its size.
    (partial / CHECKPOINT).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
    return located(relative(result, partial), folder), seconds


def _spent(partial: Path) -> float:
    """Return the seconds of a training before it was interrupted; 0 if it was killed or never ran."""
    try:
        return float((partial / SPENT).read_text())
    except (OSError, ValueError):
        return 0.0


def _map_files(value: Any, change: Callable[[File], File]) -> Any:
    if isinstance(value, File):
        return change(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(
            value, **{f.name: _map_files(getattr(value, f.name), change) for f in dataclasses.fields(value)}
        )
    if isinstance(value, tuple):
        return tuple(_map_files(item, change) for item in value)
    if isinstance(value, list):
        return [_map_files(item, change) for item in value]
    if isinstance(value, dict):
        return {key: _map_files(item, change) for key, item in value.items()}
    return value


def relative(value: Any, folder: Path) -> Any:
    """Return a record whose files inside `folder` have relative paths, so that the store can be moved."""

    def change(file: File) -> File:
        inside = file.path.is_absolute() and file.path.is_relative_to(folder)
        return dataclasses.replace(file, path=file.path.relative_to(folder)) if inside else file

    return _map_files(value, change)


def located(value: Any, folder: Path) -> Any:
    """Return a record whose relative paths are placed under `folder`. This is the inverse of `relative`."""
    return _map_files(value, lambda file: dataclasses.replace(file, path=folder / file.path))


def files(value: Any) -> list[File]:
    """Return every `File` in a record, at any depth, in the order of its fields."""
    found: list[File] = []

    def note(file: File) -> File:
        found.append(file)
        return file

    _map_files(value, note)
    return found
