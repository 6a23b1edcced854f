"""Grouped test images: design effect, intervals, tests, and what a requirement says."""

from __future__ import annotations

import numpy as np
import pytest

from compress.recipe.schema import Require
from compress.verdict import clusters, group_counts, intervals, requirements, slices
from compress.verdict.facts import Facts

RNG = np.random.default_rng(0)
# 20 clips of 10 frames; the model is right on a whole clip or wrong on all of it.
CLIPS = np.repeat(np.arange(20), 10)
ALIKE = np.repeat(np.arange(20) % 4 > 0, 10)
APART = RNG.permutation(ALIKE)


def test_images_that_are_alike_count_as_one() -> None:
    assert clusters.design_effect(ALIKE, CLIPS) == pytest.approx(10, rel=0.1)
    assert clusters.design_effect(APART, CLIPS) < 2
    low, high = clusters.accuracy_interval(ALIKE, CLIPS)
    plain_low, plain_high = intervals.wilson(int(ALIKE.sum()), len(ALIKE))
    assert high - low > 2.5 * (plain_high - plain_low)
    assert low < 0.75 < high


def test_all_right_says_as_much_as_there_are_groups() -> None:
    low, high = clusters.accuracy_interval(np.ones(200, bool), CLIPS)
    assert high == 1 and 0.75 < low < 0.9  # of 20, not of 200 images
    assert clusters.accuracy_interval(np.ones(9, bool), np.zeros(9, np.int64)) == (0.0, 1.0)


def test_groups_of_one_image_give_the_ordinary_interval_or_a_wider_one() -> None:
    correct = RNG.random(400) < 0.8
    low, high = clusters.accuracy_interval(correct, np.arange(400))
    plain = intervals.wilson(int(correct.sum()), 400)
    assert (low, high) == pytest.approx(plain, abs=0.004)


def test_names_become_numbers() -> None:
    assert clusters.numbered(np.array(["b", "a", "b", "c"])).tolist() == [1, 0, 1, 2]


def test_a_drop_in_two_clips_is_not_significant() -> None:
    reference = np.ones(200, bool)
    model = reference.copy()
    model[:20] = False  # two whole clips
    found = clusters.paired_drop(reference, model, CLIPS)
    plain = intervals.paired_drop(reference, model)
    assert plain.p < 1e-5 < 0.05 < found.p
    assert found.low < 0 < plain.low and found.high > plain.high and found.groups == 20
    assert (found.drop_points, found.lost, found.gained) == (plain.drop_points, plain.lost, plain.gained)


def test_no_flips_are_no_certainty() -> None:
    found = clusters.paired_drop(ALIKE, ALIKE, CLIPS)
    assert found.p == 1 and found.low < -5 and found.high > 5
    alone = clusters.paired_drop(ALIKE, ALIKE, np.zeros(200, np.int64))
    assert (alone.low, alone.high, alone.groups) == (-100, 100, 1)


def test_a_drop_in_most_clips_is_significant() -> None:
    reference, model = np.ones(200, bool), np.arange(200) % 10 > 1
    found = clusters.paired_drop(reference, model, CLIPS)
    assert found.p < 0.001 and found.low > 10


def judged(require: Require, facts: Facts) -> requirements.Requirement:
    return requirements.judge(require, facts)[0]


def test_a_requirement_names_the_test_and_the_groups() -> None:
    reference, model = np.ones(200, bool), np.arange(200) % 10 > 1
    facts = Facts("a.onnx", "local", drop=clusters.paired_drop(reference, model, CLIPS))
    row = judged(Require(max_top1_drop=2.0), facts)
    assert row.verdict == "failed" and "Obuchowski 1998" in row.sentence and "20 groups" in row.sentence


def test_few_groups_decide_nothing_and_say_how_many_are_needed() -> None:
    groups = np.repeat(np.arange(8), 100)
    reference, model = np.ones(800, bool), np.arange(800) % 10 > 1
    row = judged(Require(max_top1_drop=2.0), Facts("a", "local", drop=clusters.paired_drop(reference, model, groups)))
    assert row.verdict == "undecided" and "8 groups of test images are too few" in row.sentence
    assert f"at least {clusters.FEWEST_GROUPS} are needed" in row.sentence
    facts = Facts("a", "local", correct=640, images=800, groups=8, top1_ci95=clusters.accuracy_interval(model, groups))
    assert judged(Require(min_top1=0.5), facts).verdict == "undecided"


def test_an_accuracy_is_judged_by_its_groups() -> None:
    facts = Facts("a", "local", correct=150, images=200, groups=20, top1_ci95=clusters.accuracy_interval(ALIKE, CLIPS))
    row = judged(Require(min_top1=0.65), facts)
    assert row.verdict == "undecided" and "about" in row.sentence and "would settle it" in row.sentence
    assert judged(Require(min_top1=0.3), facts).verdict == "passed"
    plain = Facts("a", "local", correct=150, images=200)
    assert judged(Require(min_top1=0.65), plain).verdict == "passed"


def test_needed_groups_follow_from_the_width() -> None:
    assert group_counts.groups_for_margin(20, 1.0, 2.0) == 80
    assert group_counts.groups_for_margin(20, 0.0, 2.0) > group_counts.MOST_GROUPS
    assert group_counts.groups_for_margin(20, 1e-9, 2.0) > group_counts.MOST_GROUPS


def test_a_row_of_the_report_gives_the_comparison_back() -> None:
    reference, model = np.ones(200, bool), np.arange(200) % 10 > 1
    drop = clusters.paired_drop(reference, model, CLIPS)
    row = {"lost": drop.lost, "gained": drop.gained, "images": drop.n, "top1_drop_ci95": [drop.low, drop.high]}
    assert clusters.row_drop({**row, "groups": drop.groups, "p": drop.p}) == drop
    assert clusters.row_drop(row) == intervals.paired_drop(reference, model)


def test_a_class_that_is_worse_in_one_clip_is_not_called_worse() -> None:
    """Ten frames of one clip flip: McNemar's test on frames would call the class worse."""
    labels = np.repeat([0, 1], 100)
    teacher = np.eye(2)[labels] * 4.0
    model = teacher.copy()
    model[:10] = model[:10, ::-1]
    for groups, worse in ((None, True), (CLIPS, False)):
        rows = slices.class_rows(labels, teacher, model, None, ("a", "b"), groups)
        assert rows[0]["worse"] is worse and rows[1]["worse"] is False
        assert rows[0].get("groups") == (None if groups is None else 10)
