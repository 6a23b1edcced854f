"""Runs of 0.1.0 as they were recorded: their stages' keys and results, over which a workflow runs without training."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import export.runtime
from compress.core.console import Console
from compress.core.records.base import from_json, to_json
from compress.core.store import Stage, Store, located, relative
from compress.pipeline import deployment
from compress.pipeline.plan import context, run
from compress.recipe import loader
from compress.stages import quantize

ROOT = Path(__file__).resolve().parents[2]
RECORDED = json.loads((ROOT / "tests" / "golden" / "cache-keys-0.1.0.json").read_text(encoding="utf-8"))


@dataclass
class Replay(Store):
    """A store that has a recorded result for every stage, whatever its key, and notes the keys."""

    results: dict[str, Any] = field(default_factory=dict)
    keys: list[list[str]] = field(default_factory=list)

    def _find(self, stage: Stage, folder: Path, title: str) -> tuple[Any, float]:
        self.keys.append([title, folder.name])
        folder.mkdir(exist_ok=True)
        np.save(folder / "train_labels.npy", np.arange(7000) % 10)  # read by the warning about the majority class
        np.save(folder / "correct.npy", np.arange(700) % 10 < 8)  # read by the choice of a teacher
        # The int8 file before tuning is recorded once: no key depends on it.
        recorded = self.results[title.replace("student static", "student")]
        result = located(from_json(stage.result, recorded), folder)
        assert to_json(relative(result, folder)) == recorded, f"{title}: the record has other JSON than 0.1.0 wrote"
        return result, 1.0


def replay(run: dict[str, Any], artifacts: Path, excluded: tuple[str, ...] = ()) -> tuple[loader.Loaded, Replay]:
    """Return the recipe of a recorded run, and a store with the run's results."""
    results = {title: result for name in run["results"] for title, result in RECORDED["results"][name].items()}
    store = Replay(artifacts, "cpu", Console(quiet=True), excluded=excluded, results=results)
    return loader.load(ROOT / run["recipe"], run["set"]), store


def pretend_recorded_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the machine and the versions be those that the keys were recorded with."""
    for module in (deployment, context):
        monkeypatch.setattr(module, "host", lambda: RECORDED["host"])
    for module in (export.runtime, run, quantize):
        monkeypatch.setattr(module, "isa", lambda: RECORDED["isa"])
    monkeypatch.setattr(deployment, "versions", lambda: RECORDED["versions"])
