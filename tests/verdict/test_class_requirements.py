"""Limits on classes: every class, named classes, the metrics that count every class alike."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from compress.recipe.schema import Require
from compress.verdict.class_requirements import ClassCounts, binomial_at_most
from compress.verdict.facts import Facts
from compress.verdict.requirements import Requirement, judge, status

GOOD = tuple(ClassCounts(f"c{index}", 100, 95, 3, 2) for index in range(5))
FACTS = Facts(
    file="student.int8.onnx",
    target="local",
    images=500,
    classes=GOOD,
    balanced_accuracy=0.95,
    balanced_accuracy_ci95=(0.92, 0.97),
    macro_f1=0.9,
    macro_f1_ci95=(0.87, 0.93),
)


def one(facts: Facts = FACTS, **limits: Any) -> Requirement:
    (row,) = judge(Require(**limits), facts, {name: f"a.yaml:3:{len(name)}" for name in limits})
    return row


def with_class(*more: ClassCounts) -> Facts:
    return replace(FACTS, classes=(*GOOD, *more))


def test_every_class_passes_or_the_limit_does_not():
    row = one(min_recall=0.6)
    assert (row.verdict, row.value, row.limit, row.class_name) == ("passed", 0.95, 0.6, None)
    assert row.ci95 == pytest.approx((0.888, 0.978), abs=1e-3) and "lowest recall of 5 classes" in row.sentence


def test_a_class_that_is_never_right_fails_the_limit():
    row = one(with_class(ClassCounts("rose", 34, 0, 20, 0)), min_recall=0.6)
    assert (row.verdict, row.value) == ("failed", 0.0)
    assert "that of rose, 0.0 % [0.0 %, 10.2 %] (0 of 34); the minimum is 60.0 %" in row.sentence
    assert "Not met, also after Holm's correction: rose." in row.sentence


def test_a_class_of_few_images_leaves_the_limit_undecided_and_says_how_many():
    row = one(with_class(ClassCounts("rose", 10, 8, 0, 0)), min_recall=0.6)
    assert row.verdict == "undecided"
    assert "Too few test images to decide: rose needs about 24 instead of 10." in row.sentence


def test_one_class_beyond_its_interval_is_chance_among_many():
    """The exact p of 9 of 20 at 0.7 is 0.017: beyond the level alone, not among 40 classes."""
    odd = ClassCounts("odd", 20, 9, 0, 0)
    assert binomial_at_most(9, 20, 0.7) == pytest.approx(0.0171, abs=1e-4)
    assert one(replace(FACTS, classes=(odd,)), min_recall=0.7).verdict == "failed"
    many = replace(FACTS, classes=(odd, *(replace(GOOD[0], name=str(index)) for index in range(39))))
    assert one(many, min_recall=0.7).verdict == "undecided"


@pytest.mark.slow
def test_a_student_that_just_meets_the_limit_rarely_fails_it():
    random, failed = np.random.default_rng(0), 0
    for _ in range(500):
        counts = [ClassCounts(str(index), 30, int(random.binomial(30, 0.8)), 0, 0) for index in range(20)]
        failed += one(replace(FACTS, classes=tuple(counts)), min_recall=0.8).verdict == "failed"
    assert failed <= 0.025 * 500 + 3 * (0.025 * 500) ** 0.5


def test_named_classes_are_judged_one_by_one():
    facts = with_class(ClassCounts("faulty", 40, 20, 0, 0))
    rows = judge(Require(min_recall={"c0": 0.8, "faulty": 0.8}), facts)
    assert [(row.name, row.class_name, row.verdict) for row in rows] == [
        ("min_recall", "c0", "passed"),
        ("min_recall", "faulty", "failed"),
    ]
    assert status(rows) == "failed" and "The recall of faulty is 50.0 % " in rows[1].sentence


def test_a_name_counts_in_the_form_that_people_see():
    facts = replace(FACTS, classes=(ClassCounts(unicodedata.normalize("NFD", "Käfer"), 100, 95, 0, 0),))
    assert one(facts, min_recall={unicodedata.normalize("NFC", "Käfer"): 0.8}).verdict == "passed"


def test_a_class_without_test_images_is_not_passed():
    empty = ClassCounts("empty", 0, 0, 0, 0)
    row = one(with_class(empty), min_recall=0.6)
    assert row.verdict == "undecided" and "No test image: empty." in row.sentence
    assert one(with_class(empty), min_recall={"empty": 0.6}).verdict == "not judged"
    assert one(replace(FACTS, classes=()), min_recall=0.6).verdict == "not judged"


@pytest.mark.parametrize(("limit", "verdict"), [(0.9, "passed"), (0.94, "undecided"), (0.98, "failed")])
def test_the_means_are_judged_by_their_intervals(limit: float, verdict: str):
    row = one(min_balanced_accuracy=limit)
    assert row.verdict == verdict and ("would settle it" in row.sentence) is (verdict == "undecided")
    assert one(replace(FACTS, macro_f1=0.95, macro_f1_ci95=(0.92, 0.97)), min_macro_f1=limit).verdict == verdict


@pytest.mark.parametrize(("lost", "verdict"), [(3, "passed"), (30, "undecided"), (80, "failed")])
def test_the_drop_of_every_class_has_a_limit(lost: int, verdict: str):
    row = one(with_class(ClassCounts("rose", 100, 10, lost, 0)), max_class_drop=30.0)
    assert row.verdict == verdict and (lost == 3 or row.value == lost)
    assert "that of rose" in row.sentence or lost == 3
