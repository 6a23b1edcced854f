"""The script for a lent GPU: its order, its budget, what travels, how settings are chosen and results judged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpu_steps
import numpy as np
import on_gpu
import pytest
import search_settings
import travel
from click.testing import CliRunner, Result
from gpu_steps import Given, Step

from compress.core.errors import UsageError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    """Give SIGTERM back what it did before, and take $OUT away."""
    before, out = signal.getsignal(signal.SIGTERM), os.environ.pop("OUT", None)
    yield
    signal.signal(signal.SIGTERM, before)
    if out is not None:
        os.environ["OUT"] = out


def call(*told: str) -> Result:
    return CliRunner().invoke(on_gpu.main, list(told))


def commands(monkeypatch: pytest.MonkeyPatch, *steps: Step) -> None:
    """Put these steps in the place of the real ones."""
    monkeypatch.setattr(on_gpu, "steps", lambda given: steps)


def step(name: str, code: str, **more: Any) -> Step:
    return Step(name, (("-c", code),), **more)


# the budget and what is left of the order


@pytest.mark.slow
def test_a_step_that_the_budget_stops_goes_on_and_none_is_done_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = tmp_path / "counted"
    note = f"open({str(counted)!r}, 'a').write"
    slow = f"import time, pathlib; {note}('b'); p = pathlib.Path({str(tmp_path / 'half')!r}); "
    slow += "x = None if p.exists() else (p.touch(), time.sleep(60))"
    commands(monkeypatch, step("a", f"{note}('a')"), step("b", slow), step("c", f"{note}('c')"))

    first = call("4", "--rehearse", "--artifacts", str(tmp_path / "one"))
    assert first.exit_code == 6 and counted.read_text() == "ab"
    assert travel.read(tmp_path / "one" / "state")["log"][-1][:2] == ["b", "stopped"]  # type: ignore[index]

    # on another machine, which has the state alone
    told = ("--rehearse", "--artifacts", str(tmp_path / "two"), "--resume", str(tmp_path / "one" / "state"))
    second = call("20", *told)
    assert second.exit_code == 0 and counted.read_text() == "abbc"
    assert call("20", *told).exit_code == 0 and counted.read_text() == "abbc"


def test_a_step_that_fails_is_said_and_those_behind_it_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails = "import sys; print('the disk is full\\nwhat is done is kept; to go on: this'); sys.exit(4)"
    commands(
        monkeypatch,
        step("a", fails, results=("a.json",)),
        Step("b", (("-c", "pass", gpu_steps.FOUND),), found="a.json"),
        step("c", "pass"),
    )
    done = call("20", "--rehearse", "--artifacts", str(tmp_path))
    assert done.exit_code == 4
    states = {name: entry["status"] for name, entry in travel.read(tmp_path)["steps"].items()}  # type: ignore[index]
    assert states == {"a": "failed", "b": "left", "c": "done"}
    assert "a: failed" in done.output and "the disk is full" in done.output and "needs a.json" in done.output


@pytest.mark.slow
def test_a_signal_ends_the_step_and_keeps_what_is_done(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys\nsys.path[:0] = [{str(ROOT / 'benchmarks')!r}, {str(ROOT)!r}]\nimport on_gpu\n"
        "from gpu_steps import Step\n"
        "on_gpu.steps = lambda given: (Step('a', (('-c', 'import time; print(1, flush=True); time.sleep(60)'),)),)\n"
        "on_gpu.main()\n"
    )
    told = [sys.executable, str(script), "100", "--rehearse", "--artifacts", str(tmp_path / "a")]
    process = subprocess.Popen(told, stdout=subprocess.PIPE, text=True)
    log, end = tmp_path / "a" / "a.0.log", time.monotonic() + 60
    while not (log.is_file() and log.read_text()):
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on" in out
    assert travel.read(tmp_path / "a" / "state")["steps"]["a"]["status"] == "stopped"  # type: ignore[index]


# what is wrong on the command line is one sentence


@pytest.mark.parametrize(
    ("told", "code", "words"),
    [
        (("9",), 3, "--device cuda: torch sees no CUDA device here"),
        (("9", "--device", "cpu"), 3, "CIFAR-100 is not there; name an npz file"),
        (("9", "--device", "cpu", "--data", "none.npz"), 3, "none.npz is not there"),
        (("9", "--device", "cpu", "--data", __file__), 3, "a trained resnet56 is not there; name its checkpoint"),
        (("ten",), 2, "Invalid value for 'BUDGET_SECONDS'"),
    ],
)
def test_what_is_missing_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: tuple[str, ...], code: int, words: str
) -> None:
    monkeypatch.delenv("COMPRESS_TEST_DATA", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    done = call(*told, "--artifacts", str(tmp_path / "a"))
    assert done.exit_code == code and words in done.output


def test_a_rehearsal_and_the_real_thing_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands(monkeypatch)
    assert call("1", "--rehearse", "--artifacts", str(tmp_path)).exit_code == 0
    done = call("1", "--artifacts", str(tmp_path))
    assert done.exit_code == 2 and "hold the state of a rehearsal" in done.output


# what travels


def test_the_state_travels_in_small_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, state = tmp_path / "root", tmp_path / "state"
    small, large = root / "cache" / "x" / "small", root / "cache" / "x" / "large"
    small.parent.mkdir(parents=True)
    small.write_bytes(os.urandom(2000))
    large.write_bytes(os.urandom(9000))
    monkeypatch.setattr(travel, "PIECE", 1000)
    monkeypatch.setattr(travel, "LIMIT", 5000)

    assert travel.pack({"steps": {}}, root, [small, large], state) == ["cache/x/large"]
    assert all(path.stat().st_size <= 1000 for path in state.glob("*.part")) and len(list(state.glob("*.part"))) == 3
    record = travel.read(state)
    assert record is not None
    travel.unpack(record, state, tmp_path / "there")
    assert (tmp_path / "there" / "cache" / "x" / "small").read_bytes() == small.read_bytes()

    next(state.glob("*.part")).write_bytes(b"x")
    with pytest.raises(UsageError, match="is missing or damaged"):
        travel.unpack(record, state, tmp_path / "there")


def test_spent_students_and_given_teachers_stay_and_unfinished_ones_travel(tmp_path: Path) -> None:
    for name, content in (
        ("teacher/given/stage.json", '{"result": {"epochs": 0}}'),
        ("teacher/own/stage.json", '{"result": {"epochs": 240}}'),
        ("distill/spent/stage.json", "{}"),
        ("distill/done/stage.json", "{}"),
        ("distill/going.partial/checkpoint.pt", "longer"),
        ("teacher/small.partial/checkpoint.pt", "x"),
        ("logits/key/logits.npz", "large"),
    ):
        path = tmp_path / "cache" / name
        path.parent.mkdir(parents=True)
        path.write_text(content)
    found = [path.parent.name for path in travel.needed(tmp_path, {"spent"})]
    assert found == ["own", "done", "small.partial", "going.partial"]


# settings and verdicts


def test_the_search_tries_weights_first_and_then_one_change_at_a_time() -> None:
    first = search_settings.first_round()
    assert [one["alpha"] for one in first] == [0.3, 1.0, 3.0] * 2 and len(first) == 6
    best = first[4]
    second = search_settings.second_round(first, best)
    assert len(second) == 6 and all(one not in first for one in second)
    assert all(sum(one[key] != best[key] for key in best) == 1 for one in second)
    assert search_settings.score([0.1] * 18 + [0.5, 0.7]) == pytest.approx(60.0)


@pytest.mark.parametrize(
    ("pair", "best", "word", "words"),
    [
        ("resnet56-resnet20", [69.9, 70.0, 70.1], "missed", "the whole interval lies below the band"),
        ("resnet56-resnet20", [71.1, 71.2, 71.3], "met", "the whole interval lies within the band"),
        ("resnet56-resnet20", [70.08], "undecided", "the mean lies outside the band"),
        ("resnet56-mobilenet_v2", [66.0], "not judged", "nothing is published"),
    ],
)
def test_a_result_is_judged_by_the_published_band(pair: str, best: list[float], word: str, words: str) -> None:
    content = {"pair": pair, "method": "dhkd", "best": {"each": best, "mean": sum(best) / len(best)}}
    step = Step("x", (), ("x.json",))
    ((_, verdict, said),) = gpu_steps.rows(step, {"x.json": content}, "")
    assert verdict == word and said.endswith(words)


def test_failing_tests_are_a_miss_and_settings_reach_the_command() -> None:
    assert gpu_steps.rows(Step("tests", ()), {}, "1 failed, 8 passed in 60 s")[0][1] == "missed"
    assert gpu_steps.rows(Step("tests", ()), {}, "9 passed in 60 s")[0][1] == "met"
    given = Given(Path("d.npz"), Path("t"), "cuda", Path("a"), rehearse=False)
    trained = {one.name: one for one in gpu_steps.steps(given)}["resnet32x4-resnet8x4-dhkd"]
    found = {"search-resnet56-resnet20.json": {"found": {"alpha": 3.0}}}
    assert trained.told(found)[0][-2:] == ["--set", 'distill.dhkd={"alpha": 3.0}']
    assert trained.shares and "--epochs" not in trained.told(found)[0]


# the whole order in small


@pytest.mark.extended
def test_the_rehearsal_runs_the_whole_order_over_two_machines(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def run(budget: int, name: str, *more: str) -> subprocess.CompletedProcess[str]:
        told = [sys.executable, "benchmarks/on_gpu.py", str(budget), "--rehearse", "--artifacts", str(tmp_path / name)]
        return subprocess.run(
            [*told, *more], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False
        )

    first = run(24, "one")
    record = travel.read(tmp_path / "one" / "state")
    assert first.returncode == 6 and record is not None and record["log"][-1][1] == "stopped", first.stdout
    second = run(800, "two", "--resume", str(tmp_path / "one" / "state"))
    assert second.returncode == 5, second.stdout + second.stderr
    record = travel.read(tmp_path / "two" / "state")
    assert record is not None

    given = Given(tmp_path, None, "cpu", tmp_path / "two", rehearse=True)
    order = [one.name for one in gpu_steps.steps(given)]
    assert [name for name, status, _ in record["log"] if status == "done"] == order
    assert "resnet56-resnet20, kd" in second.stdout and " missed " in second.stdout
    assert all(path.stat().st_size <= travel.PIECE for path in (tmp_path / "two" / "state").iterdir())
    _check_search(tmp_path, record["results"]["search-resnet56-resnet20.json"])
    # every student was trained once: ten candidates, then two seeds, for which the teacher had answered before
    said = (tmp_path / "two" / "search-resnet56-resnet20.0.log").read_text()
    assert said.count("epoch 1/2") == said.count("epoch 2/2") == 10
    said = (tmp_path / "two" / "reproduce-resnet56-resnet20-kd-0.log").read_text()
    assert said.count("epoch 1/2") == 1
    stages = [json.loads(path.read_text()) for path in tmp_path.glob("*/cache/distill/*/stage.json")]
    asked = [
        one["result"]["teacher_rows"]
        for one in stages
        if one["config"]["method"] == "kd" and one["result"]["network"]["model"] == "resnet20"
    ]
    assert asked == [0, 0]


def _check_search(folder: Path, search: dict[str, Any]) -> None:
    """The settings with the best validation accuracy were taken, and no test image was there to choose by."""
    best = max(search["rows"], key=lambda row: row["validation_top1"])
    assert search["found"] == best["settings"] and len(search["rows"]) == 10 and search["validation_images"] == 20
    (path,) = folder.glob("two/search-resnet56-mobilenet_v2.npz")
    with np.load(path) as read, np.load(folder / "two" / "rehearsal.npz") as whole:
        assert not read["test_images"].any() and np.array_equal(read["train_images"], whole["train_images"])
