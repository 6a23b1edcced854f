"""The cache of 0.1.0 is found again: the key of every stage, and its record, are what they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compress.pipeline.plan import run as plan
from compress.pipeline.plan.context import build_context
from compress.pipeline.workflow import Workflow, places
from compress.recipe.defaults import resolve
from tests.support.recorded_run import RECORDED, ROOT, pretend_recorded_host, replay


@pytest.fixture(autouse=True)
def recorded_host(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_recorded_host(monkeypatch)


@pytest.mark.parametrize("run", RECORDED["runs"], ids=lambda run: " ".join([Path(run["recipe"]).stem, *run["set"][:1]]))
def test_every_stage_of_a_run_has_the_key_of_0_1_0(run: dict[str, Any], tmp_path: Path) -> None:
    loaded, store = replay(run, tmp_path)
    assert Workflow(loaded, resolve(loaded.recipe), store).run(started="now").started == "now"
    assert store.keys == run["keys"]


def test_every_stage_of_a_plan_has_the_key_of_0_1_0(tmp_path: Path) -> None:
    recorded = RECORDED["plan"]
    loaded, store = replay(recorded, tmp_path)
    settings = resolve(loaded.recipe)
    prepared = Workflow(loaded, settings, store).prepared
    context = build_context(settings, prepared, store, RECORDED["versions"], places(loaded), ROOT)
    plan.run(context, neighbours=recorded["neighbours"], report=lambda line: None)
    assert store.keys == recorded["keys"]
