"""Pointers from a run folder into the cache, used by `compress analyze`: the networks and the training images."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from compress.core.errors import MissingError
from compress.core.files import write_json
from compress.core.records.base import File, from_json, to_json
from compress.core.records.training import Distilled, Stripped, Trained, TrainingData
from compress.core.store import files, located, relative
from compress.pipeline.run_folder.recipe_copy import again
from compress.recipe.schema import Distill

NAME = "kept.json"


@dataclass(frozen=True)
class Kept:
    """The teacher, the student with its method's own modules, and the images that it was trained on.

    `distill`: the method's settings.
    """

    teacher: Trained
    trained: Distilled
    student: Stripped
    data: TrainingData
    distill: dict[str, object]

    @property
    def method(self) -> Distill:
        """The method's settings as a section of a recipe."""
        return Distill.model_validate(self.distill)


def write(kept: Kept, folder: Path, root: Path) -> None:
    """Write `folder/kept.json`, with paths relative to the artifacts' `root`, so that the whole can be moved."""
    write_json(folder / NAME, to_json(relative(kept, root)))


def read(folder: Path, root: Path, command: str | None) -> Kept:
    """Return the records of a run, and check that every file is as it was.

    Args:
        folder: The run folder.
        root: The artifacts folder.
        command: The command that made the run; None: not known.

    Raises:
        MissingError: The run has no such records, or the cache no longer holds a file.
    """
    command = command or again(folder)
    path = folder / NAME
    if not path.is_file():
        raise MissingError(f"{path} is missing: this run was made by an earlier version; make it again: {command}")
    kept: Kept = located(from_json(Kept, json.loads(path.read_text(encoding="utf-8"))), root)
    for file in files(kept):
        if not file.path.is_file() or File.of(file.path).sha256 != file.sha256:
            raise MissingError(
                f"{file.path} is not there any more, or not as this run left it; make it again: {command}"
            )
    return kept
