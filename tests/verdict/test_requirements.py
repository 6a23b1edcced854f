"""Verdicts from planted facts: each side of each limit, the limit itself, and what was not measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from compress.recipe.schema import Require
from compress.verdict.gains import distillation_gain, int8_gain, tuning_gain
from compress.verdict.intervals import PairedDrop, drop_from_counts
from compress.verdict.machine_text import machine_text
from compress.verdict.requirements import (
    Facts,
    Requirement,
    exit_code,
    judge,
    status,
)

FACTS = Facts(
    file="student.int8.onnx",
    target="local",
    drop=drop_from_counts(60, 20, 4000),  # 1.00 points [0.56, 1.46]
    correct=3600,
    images=4000,
    latency_ms=0.2,
    latency_ci95=(0.19, 0.22),
    timed_runs=700,
    speedup=3.5,
    speedup_ci95=(3.3, 3.6),
    bytes=900_000,
    teacher_bytes=3_600_000,
    peak_memory_bytes=60_000_000,
    int8_mac_share=0.97,
    sha256="ab" * 32,
    precision="int8",
)


def one(facts: Facts = FACTS, **limits: Any) -> Requirement:
    (row,) = judge(Require(**limits), facts)
    return row


@pytest.mark.parametrize(
    ("name", "limit", "verdict"),
    [
        ("max_top1_drop", 2.0, "passed"),
        ("max_top1_drop", 0.2, "failed"),
        ("max_top1_drop", 1.3, "undecided"),
        ("max_top1_drop", 1.0, "undecided"),
        ("min_top1", 0.88, "passed"),
        ("min_top1", 0.95, "failed"),
        ("min_top1", 0.905, "undecided"),
        ("max_latency_ms", 0.3, "passed"),
        ("max_latency_ms", 0.22, "undecided"),  # the interval touches the limit
        ("max_latency_ms", 0.21, "undecided"),
        ("max_latency_ms", 0.18, "failed"),
        ("min_speedup", 3.0, "passed"),
        ("min_speedup", 3.3, "undecided"),
        ("min_speedup", 3.55, "undecided"),
        ("min_speedup", 4.0, "failed"),
        ("max_bytes", 900_000, "passed"),
        ("max_bytes", 899_999, "failed"),
        ("min_compression", 4.0, "passed"),
        ("min_compression", 4.01, "failed"),
        ("max_memory_bytes", 60_000_000, "passed"),
        ("max_memory_bytes", 59_999_999, "failed"),
        ("min_int8_mac_share", 0.97, "passed"),
        ("min_int8_mac_share", 0.98, "failed"),
    ],
)
def test_each_side_of_each_limit(name: str, limit: float, verdict: str) -> None:
    row = one(**{name: limit})

    assert (row.name, row.limit, row.verdict) == (name, limit, verdict)
    assert row.sentence.endswith(".") and row.sentence[0].isupper()


@pytest.mark.parametrize("name", list(Require.model_fields))
def test_what_was_not_measured_is_not_judged_and_never_passed(name: str) -> None:
    row = one(Facts(file="student.int8.onnx", target="local"), **{name: 1})

    assert (row.verdict, row.value, row.ci95) == ("not judged", None, None)
    assert "not measured" in row.sentence
    assert status([row]) == "undecided"


def test_a_row_has_the_contracts_keys_and_the_place_in_the_recipe() -> None:
    rows = judge(Require(min_speedup=2, max_bytes=10), FACTS, {"max_bytes": "recipes/a.yaml:9:12"})

    assert [row.name for row in rows] == ["min_speedup", "max_bytes"]
    assert {
        "name",
        "target",
        "file",
        "limit",
        "value",
        "ci95",
        "verdict",
        "where",
        "sentence",
        "sha256",
        "precision",
        "class_name",
    } == set(vars(rows[0]))
    assert {(row.target, row.file, row.sha256, row.precision) for row in rows} == {
        ("local", "student.int8.onnx", "ab" * 32, "int8")
    }
    assert [row.where for row in rows] == ["", "recipes/a.yaml:9:12"]
    assert (rows[0].value, rows[0].ci95, rows[1].value, rows[1].ci95) == (3.5, (3.3, 3.6), 900_000, None)


def test_an_undecided_drop_says_how_many_pictures_would_settle_it() -> None:
    few = replace(FACTS, drop=drop_from_counts(6, 3, 200))  # 1.50 points, 4.5 % flips

    sentence = one(few, max_top1_drop=2.0).sentence

    assert (
        "drop 1.50 [" in sentence and "Your 200 test images can certify 3.4 points; 500 are needed for 2; " in sentence
    )
    assert "about 7,200 would settle it" in sentence  # by the rule of thumb 1.96^2 0.045 / 0.005^2, about 6,900


def test_a_drop_on_the_limit_cannot_be_settled() -> None:
    assert (
        "no number of images would settle it"
        in one(replace(FACTS, drop=drop_from_counts(80, 0, 4000)), max_top1_drop=2.0).sentence
    )


def test_a_student_above_its_teacher_is_said_so() -> None:
    row = one(replace(FACTS, drop=drop_from_counts(10, 50, 4000)), max_top1_drop=0.5)

    assert row.verdict == "passed" and row.value == -1.0
    assert "1.00 points above the teacher's" in row.sentence


def test_an_undecided_timing_says_how_many_runs_and_what_disturbed_it() -> None:
    row = one(replace(FACTS, disturbed="other processes used 0.80 cores"), max_latency_ms=0.21)

    assert "about 2,800 timed runs" in row.sentence  # twice the half-width (0.02) over the distance (0.01), squared
    assert "other processes used 0.80 cores" in row.sentence


def test_pictures_that_would_do_for_a_student_without_a_drop_are_not_asked_for() -> None:
    sentence = one(max_top1_drop=1.3).sentence

    assert (
        "Your 4,000 test images can certify 0.4 points; at the measured drop, about" in sentence
        and "are needed" not in sentence
    )


def test_times_that_others_made_too_long_decide_nothing_but_a_limit_that_they_meet_all_the_same() -> None:
    doubtful = replace(
        FACTS, unfit="other processes interrupted teacher.onnx in 90 of 100 runs, too many to leave them out"
    )
    for limits in ({"min_speedup": 0.1}, {"min_speedup": 1000.0}, {"max_latency_ms": 0.001}):
        row = one(doubtful, **limits)
        assert row.verdict == "undecided" and row.ci95 is not None
        assert row.sentence.endswith("in 90 of 100 runs, too many to leave them out: measure again on a quiet machine.")
    assert one(doubtful, max_latency_ms=1000.0).verdict == "passed"
    crowded = replace(FACTS, unfit="64 threads on 2 cores interrupt each other; lower validate.threads")
    assert one(crowded, min_speedup=0.1).sentence.endswith("interrupt each other; lower validate.threads.")


def test_a_disturbed_timing_clear_of_its_limit_is_decided_and_says_so() -> None:
    noisy = replace(FACTS, disturbed="other processes used 0.80 cores")

    assert [one(noisy, max_latency_ms=limit).verdict for limit in (0.3, 0.1)] == ["passed", "failed"]
    assert (
        "other processes used 0.80 cores, but the interval over all rounds lies clear"
        in one(noisy, max_latency_ms=0.3).sentence
    )


def test_a_file_for_another_processor_is_not_judged_and_the_reason_is_named() -> None:
    row = one(Facts("a.onnx", "local", untimed="it is built for arm64 and this machine is x86-vnni"), max_latency_ms=3)

    assert row.verdict == "not judged" and "(it is built for arm64 and this machine is x86-vnni)" in row.sentence


def test_a_timing_without_rounds_is_undecided() -> None:
    row = one(replace(FACTS, latency_ci95=None), max_latency_ms=100)

    assert row.verdict == "undecided" and "validate.repeats" in row.sentence


@pytest.mark.parametrize(
    ("verdicts", "answer", "code"),
    [
        ([], "passed", 0),
        (["passed", "passed"], "passed", 0),
        (["passed", "undecided"], "undecided", 6),
        (["passed", "not judged"], "undecided", 6),
        (["undecided", "failed", "not judged"], "failed", 5),
    ],
)
def test_failed_beats_undecided(verdicts: list[Any], answer: str, code: int) -> None:
    rows = [replace(one(max_bytes=10), verdict=verdict) for verdict in verdicts]

    assert status(rows) == answer
    assert exit_code(status(rows)) == code


def worth(gain: float, low: float, high: float) -> str:
    return distillation_gain(PairedDrop(4000, 0, 0, -gain, -high, -low, 1.0))


@pytest.mark.parametrize(
    ("gain", "low", "high", "sentence"),
    [
        (1.4, 0.2, 2.6, "tuning +1.4 [0.2, 2.6] points over static int8"),
        (0.3, -0.5, 1.1, "no evidence that tuning helped: +0.3 [-0.5, 1.1] points against static int8"),
        (-1.2, -2.0, -0.4, "tuning hurt: -1.2 [-2.0, -0.4] points against static int8"),
    ],
)
def test_what_tuning_was_worth(gain: float, low: float, high: float, sentence: str) -> None:
    assert tuning_gain(PairedDrop(4000, 0, 0, -gain, -high, -low, 1.0)) == sentence


def test_what_distillation_was_worth() -> None:
    assert worth(1.4, 0.2, 2.6) == "distillation +1.4 [0.2, 2.6] points"
    assert worth(0.3, -0.5, 1.1) == "no evidence that the teacher helped: +0.3 [-0.5, 1.1] points"
    assert worth(-1.2, -2.0, -0.4) == "distillation hurt: -1.2 [-2.0, -0.4] points"
    assert worth(0.9, 0.03, 1.8) == "distillation +0.9 [0.03, 1.8] points"  # one decimal would look like zero
    assert worth(0.0, -0.6, 0.6) == "no evidence that the teacher helped: +0.0 [-0.6, 0.6] points"


def test_what_int8_was_worth() -> None:
    assert int8_gain(1.152, (1.1, 1.2)).startswith("int8 is 1.15x [1.1, 1.2] as fast")
    assert "slower" in int8_gain(0.9, (0.85, 0.95))
    assert "within noise" in int8_gain(1.02, (0.97, 1.08))
    assert "no interval" in int8_gain(1.02, None)
    unknown = int8_gain(1.152, (1.1, 1.2), "on ssh://pi", "others took the core in most runs")
    assert (
        unknown
        == "how fast int8 is against the float student on ssh://pi is not known: others took the core in most runs."
    )


def test_a_ratio_of_cpu_time_is_fit_and_a_time_is_not() -> None:
    crowded = "other processes interrupted teacher.onnx in 90% of its runs"
    facts = replace(FACTS, unfit=crowded, cpu_ratios=crowded)
    ratio = one(facts, min_speedup=3.0)
    assert ratio.verdict == "passed" and f" by CPU time of one thread ({crowded}); the minimum is 3x" in ratio.sentence
    assert one(facts, max_latency_ms=0.1).verdict == "undecided"
    assert one(replace(FACTS, unfit=crowded), min_speedup=3.0).verdict == "undecided"


def test_a_time_names_its_machine() -> None:
    machine = f"on this {machine_text('AMD EPYC 7B13 Processor', 'x86-vnni')}, not on another board"
    row = one(replace(FACTS, machine=machine), max_latency_ms=0.3)
    assert "0.2 ms [0.19, 0.22] on this AMD EPYC 7B13 with VNNI, not on another board; the limit" in row.sentence
    assert machine_text(None, "arm64") == "arm64 machine" and machine_text("", None) == "machine"


def test_int8s_gain_by_cpu_time_is_given_although_times_are_unfit() -> None:
    said = int8_gain(1.9, (1.8, 2.0), "on this machine", unfit="busy", cpu="busy")
    assert (
        said == "int8 is 1.9x [1.8, 2] as fast as the float student on this machine by CPU time of one thread (busy)."
    )
