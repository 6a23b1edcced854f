"""What `--until` runs: every part of the stages up to the named one, of the baseline too, and nothing behind it."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.core.store import StopAfter
from compress.pipeline.run import left_out
from compress.pipeline.workflow import Workflow
from compress.recipe.defaults import resolve
from compress.stages import STAGES
from tests.support.recorded_run import RECORDED, pretend_recorded_host, replay

PLAIN, _, EVERYTHING = RECORDED["runs"]  # the flagship; the flagship with tuning, proxy teachers and packaged files


@pytest.fixture(autouse=True)
def recorded_host(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_recorded_host(monkeypatch)


@pytest.mark.parametrize("until", STAGES)
@pytest.mark.parametrize("run", [PLAIN, EVERYTHING], ids=["plain", "everything"])
def test_until_runs_the_named_stage_whole_and_nothing_behind_it(run, until: str, tmp_path: Path) -> None:
    loaded, store = replay(run, tmp_path, left_out(until))
    work = Workflow(loaded, resolve(loaded.recipe), store)
    if until == "report":
        work.run(started="")
    else:
        with pytest.raises(StopAfter):
            work.run(started="")
    wanted = {"data", "proxy", *STAGES[: STAGES.index(until) + 1]}
    assert store.keys == [[title, key] for title, key in run["keys"] if title.split()[0] in wanted]
