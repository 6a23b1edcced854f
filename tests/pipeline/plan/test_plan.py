"""Before training: the plan of tiny networks, its limits and its cache; `student.choose` up to the trained student."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from compress.cli import main
from compress.core.errors import RecipeError
from compress.core.store import Context
from compress.pipeline.plan import alternatives, limits, run, table
from compress.recipe import loader
from compress.recipe.defaults import resolve
from compress.recipe.schema import Choice
from compress.report.page import section
from compress.report.read import Source
from compress.report.schema import Report
from compress.report.sections import plan as planned

BASE: dict[str, Any] = {
    "name": "tiny",
    "data": {"source": "fashion", "limit_train": 200, "limit_test": 100},
    "teacher": {"candidates": [{"model": "resnet14", "train": {"epochs": 1}}]},
    "student": {"model": "resnet8"},
    "train": {"epochs": 1, "views": 1},
}
CHOICES = [{"model": "mobilenet_v2", "width": 0.25}, {"model": "resnet8"}]


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**BASE, **changes}, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where the first plan was made: three networks, in all the limits that follow from files alone."""
    folder = tmp_path_factory.mktemp("plan")
    path = write(folder, require={"max_latency_ms": 1000, "max_bytes": 10_000_000, "max_top1_drop": 2})
    assert main.main(["plan", str(path), "--neighbours", "1", "--artifacts", str(folder / "artifacts"), "-q"]) == 0
    return folder / "artifacts"


def planning(
    capsys: pytest.CaptureFixture[str], artifacts: Path, path: Path, *more: str
) -> tuple[int, dict[str, Any], str]:
    """Exit code, the JSON on stdout, stderr."""
    code = main.main(["plan", str(path), "--artifacts", str(artifacts), "--json", *more])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else {}, err


@pytest.mark.slow
def test_a_plan_measures_what_needs_no_training(artifacts: Path) -> None:
    content = json.loads((artifacts / "plans" / "tiny.json").read_text())
    teacher, student, other = content["networks"]
    assert [row["role"] for row in (teacher, student, other)] == ["teacher", "student", "neighbour"]
    assert (teacher["name"], teacher["int8"], student["params"], student["macs"]) == (
        "resnet14",
        None,
        78_042,
        12_501_632,
    )
    for row in (student, other):
        for precision in ("fp32", "int8"):
            low, high = row[precision]["latency_ms"]["p50_ci95"]
            assert 0 < low <= high and row[precision]["latency_ms"]["runs"] > 0
            assert row[precision]["peak_memory_bytes"] is None or row[precision]["peak_memory_bytes"] > 10_000_000
        assert row["int8"]["bytes"] < row["fp32"]["bytes"] and 0.9 < row["int8"]["int8_mac_share"] <= 1
        assert row["int8_speedup_ci95"][0] <= row["int8_speedup"] <= row["int8_speedup_ci95"][1]
    assert [pair["against"] for pair in student["speedups"]] == ["resnet14"]
    assert content["pictures"] == "training pictures" and content["not_judged"] == ["max_top1_drop"]
    assert {row["name"]: row["verdict"] for row in content["requirements"]} == {
        "max_latency_ms": "passed",
        "max_bytes": "passed",
    }
    assert "max_top1_drop cannot be judged before training." in content["sentences"]


@pytest.mark.slow
def test_a_second_plan_measures_nothing_and_judges_anew(
    artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(artifacts.glob("cache/plan*/*/stage.json"))
    path = write(tmp_path, require={"max_latency_ms": 1e-4, "min_int8_mac_share": 0.5})
    code, content, err = planning(capsys, artifacts, path, "--neighbours", "1")
    assert code == 5 and all(row["reused"] for row in content["networks"])
    assert sorted(artifacts.glob("cache/plan*/*/stage.json")) == before
    assert "failed     max_latency_ms: " in err and f"{path}:" in err and err.splitlines()[1].startswith("network ")
    assert any(
        text.startswith("none is sure to meet 0.0001 ms (max_latency_ms); resnet8 and ")
        for text in content["sentences"]
    )


@pytest.mark.slow
def test_a_limit_within_the_interval_is_undecided(
    artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = json.loads(next(artifacts.glob("plans/*.json")).read_text())
    p50 = next(row for row in known["networks"] if row["role"] == "student")["int8"]["latency_ms"]["p50"]
    assert planning(capsys, artifacts, write(tmp_path, require={"max_latency_ms": p50}), "--neighbours", "0")[0] == 6


@pytest.mark.slow
def test_without_its_data_a_plan_takes_noise_and_says_so(
    artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = {"candidates": [{"model": "resnet8"}]}
    path = write(
        tmp_path,
        data={"source": "npz", "root": "absent.npz", "image_size": 16},
        teacher=teacher,
        quantize={"scheme": "none"},
    )
    code, content, err = planning(capsys, artifacts, path, "--neighbours", "0")
    assert (code, content["pictures"], content["classes"], content["networks"][1]["int8"]) == (0, "noise", 10, None)
    assert "absent.npz" in err and "noise" in err


@pytest.mark.slow
def test_choose_is_planned_checked_shown_and_used(
    artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, student={"choose": {"max_latency_ms": 1000, "from": CHOICES}})
    at = ["--artifacts", str(artifacts)]
    assert main.main(["check", str(path)]) == 0
    assert capsys.readouterr().out.count("note: student ") == 2
    assert main.main(["show", str(path), *at]) == 0 and "nothing is picked yet" in capsys.readouterr().err
    code, content, _ = planning(capsys, artifacts, path)
    assert (code, content["student"], content["choose"]["chosen"]) == (0, "resnet8", "resnet8")
    assert (
        main.main(["show", str(path), *at]) == 0
        and "student: resnet8, the largest of 2 within 1,000 ms" in capsys.readouterr().err
    )


@pytest.mark.slow
def test_a_run_trains_what_choose_picks(artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, student={"choose": {"max_latency_ms": 1000, "from": CHOICES}})
    assert main.main(["run", str(path), "--until", "strip", "--artifacts", str(artifacts)]) == 0
    out = capsys.readouterr().out
    assert out.index("student: resnet8") < out.index("teacher resnet14  ")  # before any training
    (record,) = artifacts.glob("cache/strip/*/stage.json")
    assert json.loads(record.read_text())["result"]["trained"]["network"]["model"] == "resnet8"


@pytest.mark.slow
def test_nothing_fast_enough_ends_a_run_before_training(
    artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, student={"choose": {"max_latency_ms": 1e-4, "from": CHOICES}})
    assert main.main(["run", str(path), "--artifacts", str(artifacts), "-q"]) == 4
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "student.choose" in line]
    assert line.startswith("student.choose: no network of the list meets 0.0001 ms here; the fastest is ")
    assert planning(capsys, artifacts, path)[0] == 5


def row(name: str, macs: int, low: float, high: float, **more: Any) -> dict[str, Any]:
    latency = {"p50": (low + high) / 2, "p50_ci95": [low, high]}
    file = {"latency_ms": latency, "bytes": 1000, "peak_memory_bytes": None}
    common = {
        "role": "choice",
        "name": name,
        "macs": macs,
        "params": 1,
        "fp32": file,
        "disturbances": [],
        "unfit": None,
        "requirements": [],
        "speedups": [],
    }
    return {
        **common,
        "ships": "int8",
        "int8": {**file, "islands": []},
        "int8_speedup": 2.0,
        "int8_speedup_ci95": [1.9, 2.1],
        "status": "passed",
        **more,
    }


def test_the_largest_whose_whole_interval_fits_is_picked() -> None:
    rows = [row("small", 1, 0.5, 0.6), row("middle", 2, 1.0, 1.1), row("wide", 3, 2.5, 3.1), row("large", 4, 5.0, 5.1)]
    assert [(run.largest(rows, budget) or {}).get("name") for budget in (0.4, 0.6, 3.0, 3.1, 9.0)] == [
        None,
        "small",
        "middle",
        "wide",
        "large",
    ]
    twins = [row("thin", 2, 1.0, 1.0), row("thick", 2, 1.0, 1.0, params=5)]
    assert run.largest(twins, 2.0) == twins[1]
    assert table.choice(rows, rows[1], 3.0).startswith(
        "student: middle, the largest of 4 within 3 ms (1.05 [1, 1.1] ms); wide and large are too slow"
    )


def test_the_words_of_a_plan() -> None:
    limit = {"name": "max_latency_ms", "limit": 3.0}
    slow = row(
        "slow",
        2,
        4.0,
        4.1,
        int8_speedup=0.8,
        int8_speedup_ci95=[0.7, 0.9],
        requirements=[{**limit, "verdict": "failed"}],
    )
    slow["int8"] = {**slow["int8"], "islands": ["28 HardSigmoid"]}
    same = row(
        "same",
        2,
        3.0,
        3.1,
        int8_speedup=1.0,
        int8_speedup_ci95=[0.9, 1.1],
        requirements=[{**limit, "verdict": "undecided"}],
    )
    fast = row("fast", 2, 1.0, 1.1, requirements=[{**limit, "verdict": "passed"}])
    said = list(
        table.sentences(
            {"networks": [slow, same, fast], "choose": None, "not_judged": ["min_top1"], "device": "local", "host": {}}
        )
    )
    assert said == [
        "slow: int8 is slower than float32 here, 0.80x [0.70, 0.90] its speed; in float inside int8: 28 HardSigmoid.",
        "same: int8 is no faster than float32 here, within noise, 1.00x [0.90, 1.10] its speed.",
        "int8 is faster than float32 here: fast.",
        "fast meets 3 ms (max_latency_ms); slow does not; undecided: same.",
        "min_top1 cannot be judged before training.",
    ]


def test_times_that_others_made_too_long_are_said() -> None:
    unfit = "other processes interrupted fp32 in 90 of 100 runs, too many to leave them out"
    rows = [row(name, 2, 1.0, 1.1, unfit=unfit) for name in ("a", "b", "c")]
    said = list(table.sentences({"networks": rows, "choose": None, "not_judged": [], "device": "local", "host": {}}))
    assert said[-1] == f"a: {unfit}: times are too long and ratios doubtful, and so are those of 2 others."


def test_a_limit_against_the_teacher_holds_only_for_every_candidate() -> None:
    def judged(verdict: str, value: float) -> dict[str, Any]:
        return {
            "name": "min_speedup",
            "limit": 3.0,
            "value": value,
            "verdict": verdict,
            "sentence": f"It is {value:g}x.",
        }

    both = limits.agreed([("big", judged("passed", 8.0)), ("small", judged("passed", 4.0))])
    assert (both["verdict"], both["value"], both["sentence"]) == ("passed", 4.0, "Against small: It is 4x.")
    split = limits.agreed([("big", judged("passed", 8.0)), ("small", judged("failed", 2.0))])
    assert split["verdict"] == "undecided" and "passed against big (8x); failed against small (2x)" in split["sentence"]


@pytest.mark.slow
def test_neighbours_are_the_students_family_and_others_of_similar_cost(tmp_path: Path) -> None:
    context: Any = Context.__new__(Context)  # the stage writes nothing
    found = alternatives.find_alternatives(
        Choice(model="shufflenet_v2", width=0.5),
        context=context,
        size=32,
        classes=10,
        most=4,
        without=("resnet8",),
        known=(),
    )
    names = [table.name_of(one.model, one.width) for one in found.networks]
    assert (
        names[0] == "shufflenet_v2 x1"
        and {"mobilenet_v2 x0.75", "resnet14"} <= set(names)
        and "resnet8" not in names
        and len(names) <= 4
    )


@pytest.mark.parametrize(
    ("student", "problem"),
    [
        (
            "{model: resnet8, choose: {max_latency_ms: 3, from: [{model: resnet8}]}}",
            "student.model: stands beside student.choose",
        ),
        (
            "{width: 0.5, choose: {max_latency_ms: 3, from: [{model: resnet8}]}}",
            "student.width: stands beside student.choose",
        ),
        ("{}", "student.model: missing; it has no default"),
        ("{choose: {from: [{model: resnet8}]}}", "student.choose.max_latency_ms: missing; it has no default"),
        ("{choose: {max_latency_ms: 3, from: []}}", "student.choose.from: expected at least one entry, got none"),
        (
            "{choose: {max_latency_ms: 3, from: [{model: resnet9}]}}",
            "student.choose.from.0.model: there is no network 'resnet9'",
        ),
        (
            "{choose: {max_latency_ms: 3, from: [{model: shufflenet_v2, width: 3}]}}",
            "student.choose.from.0.width: shufflenet_v2 comes in the widths",
        ),
        (
            "{choose: {max_latency_ms: 3, of: [{model: resnet8}]}}",
            "student.choose.of: unknown key; known are max_latency_ms, from",
        ),
    ],
)
def test_wrong_choices_are_named(tmp_path: Path, student: str, problem: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(f"data: {{source: fashion}}\nteacher: {{candidates: [{{model: resnet14}}]}}\nstudent: {student}\n")
    with pytest.raises(RecipeError) as caught:
        loader.load(path)
    assert any(problem in str(one) and str(one).startswith(f"{path}:3:") for one in caught.value.problems), str(
        caught.value
    )


def test_a_resolved_recipe_with_choose_loads_again_and_leaves_open_what_depends_on_the_choice(tmp_path: Path) -> None:
    unlike = resolve(loader.load(write(tmp_path, student={"choose": {"max_latency_ms": 3, "from": CHOICES}})).recipe)
    alike = resolve(loader.load(write(tmp_path, student={"choose": {"max_latency_ms": 3, "from": CHOICES[1:]}})).recipe)
    assert (unlike.train.lr, alike.train.lr) == (None, 0.05)
    path = tmp_path / "again.yaml"
    path.write_text(loader.dump(unlike))
    assert loader.load(path).recipe.student == unlike.student


def test_the_report_shows_what_was_chosen() -> None:
    rows = [row("a<b", 5_000_000, 1.0, 1.1), row("large", 9_000_000, 5.0, 5.1)]
    content = {
        "choose": {"chosen": "a<b", "sentence": table.choice(rows, rows[0], 3.0)},
        "networks": rows,
        "host": {"cpu": "A CPU"},
    }
    view = planned.choice(Source(Report.model_validate({"plan": content}), (), {}, {}, []))
    html = section("plan", view)
    assert html.count("chosen</span>") == 1 and "a&lt;b" in html and "A CPU" in html
    assert planned.choice(Source(Report(), (), {}, {}, [])) is None
