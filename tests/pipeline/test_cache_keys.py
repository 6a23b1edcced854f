"""The cache of 0.1.0 is found again: the key of every stage, and its record, are what they were."""

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
from compress.pipeline import workflow
from compress.pipeline.plan import run as plan
from compress.pipeline.workflow import Workflow, places
from compress.recipe import loader
from compress.recipe.defaults import resolve
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
        folder.mkdir()
        np.save(folder / "train_labels.npy", np.arange(7000) % 10)  # read by the warning about the majority class
        np.save(folder / "correct.npy", np.arange(700) % 10 < 8)  # read by the choice of a teacher
        # The int8 file before tuning is recorded once: no key depends on it.
        recorded = self.results[title.replace("student static", "student")]
        result = located(from_json(stage.result, recorded), folder)
        assert to_json(relative(result, folder)) == recorded, f"{title}: the record has other JSON than 0.1.0 wrote"
        return result, 1.0


@pytest.fixture
def recorded_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine and the versions that the keys were recorded with."""
    for module in (export.runtime, plan):
        monkeypatch.setattr(module, "host", lambda: RECORDED["host"])
    for module in (export.runtime, plan, quantize):
        monkeypatch.setattr(module, "isa", lambda: RECORDED["isa"])
    monkeypatch.setattr(workflow, "versions", lambda: RECORDED["versions"])


def replay(run: dict[str, Any], artifacts: Path) -> tuple[loader.Loaded, Replay]:
    """The loaded recipe, and a store with the results of the recorded run."""
    results = {title: result for name in run["results"] for title, result in RECORDED["results"][name].items()}
    return loader.load(ROOT / run["recipe"], run["set"]), Replay(artifacts, "cpu", Console(quiet=True), results=results)


@pytest.mark.parametrize("run", RECORDED["runs"], ids=lambda run: " ".join([Path(run["recipe"]).stem, *run["set"][:1]]))
def test_every_stage_of_a_run_has_the_key_of_0_1_0(run: dict[str, Any], tmp_path: Path, recorded_host: None) -> None:
    loaded, store = replay(run, tmp_path)
    assert Workflow(loaded, resolve(loaded.recipe), store, None).evidence(started="") is not None
    assert store.keys == run["keys"]


def test_every_stage_of_a_plan_has_the_key_of_0_1_0(tmp_path: Path, recorded_host: None) -> None:
    recorded = RECORDED["plan"]
    loaded, store = replay(recorded, tmp_path)
    settings = resolve(loaded.recipe)
    prepared = Workflow(loaded, settings, store, None).prepared
    ground = plan.ground(settings, prepared, store, RECORDED["versions"], places(loaded), ROOT)
    plan.run(ground, neighbours=recorded["neighbours"], report=lambda line: None)
    assert store.keys == recorded["keys"]
