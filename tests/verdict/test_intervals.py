"""Intervals and tests against published tables, exact coverage, and planted cases."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from compress.verdict import intervals, sample_size


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_wilson_equals_newcombes_table(successes: int, n: int, low: float, high: float) -> None:
    # Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3 (the last one mirrors his 0 of 29: 0 to
    # 0.1170).
    assert intervals.wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_is_wider_with_more_confidence_and_refuses_nonsense() -> None:
    narrow, wide = intervals.wilson(30, 40, 0.9), intervals.wilson(30, 40, 0.99)

    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    for successes, n in ((1, 0), (5, 4), (-1, 4)):
        with pytest.raises(ValueError, match="successes"):
            intervals.wilson(successes, n)
    with pytest.raises(ValueError, match="confidence"):
        intervals.wilson(1, 2, 1.0)


@pytest.mark.parametrize(
    ("lost", "gained", "p"),
    [
        (1, 7, 18 / 256),
        (7, 1, 18 / 256),
        (0, 0, 1.0),
        (4, 4, 1.0),
        (0, 6, 2 / 64),
        (16, 6, 0.0524788),
        (11, 3, 0.0573730),
    ],
)
def test_mcnemar_by_hand(lost: int, gained: int, p: float) -> None:
    assert intervals.mcnemar_exact(lost, gained) == pytest.approx(p, abs=5e-8)


def test_mcnemar_neither_underflows_nor_overflows() -> None:
    assert intervals.mcnemar_exact(268, 13) == pytest.approx(4.46e-63, rel=1e-2)
    # 5000 against 5100 flips: the normal approximation with continuity correction is right to four digits there
    z = (100 - 1) / math.sqrt(10100)
    assert intervals.mcnemar_exact(5000, 5100) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-3)
    with pytest.raises(ValueError, match="negative"):
        intervals.mcnemar_exact(-1, 2)


def test_difference_equals_the_published_score_interval() -> None:
    # Airway hyper-responsiveness in 21 children, 1 against 7 flips: -0.286, Tango's interval -0.517 to -0.026
    # (Bentur et al. 2009 in Fagerland, Lydersen, Laake 2014, Statistics in Medicine 33, 2850-2875).
    assert intervals.difference_interval(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)


def test_difference_solves_tangos_equation_at_its_ends() -> None:
    # The closed case without flips: z^2 / (n + z^2) on both sides; all lost: the upper end is 1.
    z2 = 1.959963984540054**2
    assert intervals.difference_interval(0, 0, 100) == pytest.approx((-z2 / (100 + z2), z2 / (100 + z2)))
    low, high = intervals.difference_interval(100, 0, 100)
    assert high == pytest.approx(1.0)
    assert low == pytest.approx((100 - z2) / (100 + z2))


@pytest.mark.parametrize(("lost", "gained", "n"), [(3, 1, 40), (0, 9, 30), (55, 20, 1000), (1, 1, 2)])
def test_difference_is_antisymmetric_and_holds_the_estimate(lost: int, gained: int, n: int) -> None:
    low, high = intervals.difference_interval(lost, gained, n)
    mirrored = intervals.difference_interval(gained, lost, n)

    assert low < (lost - gained) / n < high
    assert (-mirrored[1], -mirrored[0]) == pytest.approx((low, high), abs=1e-12)
    assert -1 <= low and high <= 1


def bonett_price(lost: float, gained: float, n: float) -> tuple[float, float]:
    """The closed form that was not taken. Source: Bonett and Price 2012."""
    p, q = (lost + 1) / (n + 2), (gained + 1) / (n + 2)
    half = 1.959963984540054 * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    return p - q - half, p - q + half


def wald(lost: float, gained: float, n: float) -> tuple[float, float]:
    p, q = lost / n, gained / n
    half = 1.959963984540054 * math.sqrt((p + q - (p - q) ** 2) / n)
    return p - q - half, p - q + half


def misses(
    interval: Callable[[float, float, float], tuple[float, float]], n: int, p_lost: float, p_gained: float
) -> tuple[float, float]:
    """Compute by all outcomes the exact probabilities that the true difference lies above and below the interval."""
    above = below = 0.0
    for lost in range(n + 1):
        for gained in range(n + 1 - lost):
            if (p_gained == 0 and gained) or lost + gained > 5 * n * (p_lost + p_gained) + 8:
                break
            rest = n - lost - gained
            log = math.lgamma(n + 1) - math.lgamma(lost + 1) - math.lgamma(gained + 1) - math.lgamma(rest + 1)
            log += (
                lost * math.log(p_lost)
                + (gained * math.log(p_gained) if gained else 0.0)
                + rest * math.log(1 - p_lost - p_gained)
            )
            if log > -18:
                low, high = interval(lost, gained, n)
                above += math.exp(log) * (high < p_lost - p_gained)
                below += math.exp(log) * (low > p_lost - p_gained)
    return above, below


CASES = [(0.05, 0.05), (0.06, 0.02), (0.10, 0.0), (0.03, 0.01), (0.05, 0.0), (0.02, 0.0), (0.08, 0.05)]


@pytest.mark.parametrize("n", [40, 100, 200])
def test_the_score_interval_certifies_wrongly_less_often_than_the_alternatives(n: int) -> None:
    ours = [misses(intervals.difference_interval, n, *case) for case in CASES]
    closed = [misses(bonett_price, n, *case) for case in CASES]
    plain = [misses(wald, n, *case) for case in CASES]

    assert max(above for above, _ in ours) < 0.028  # nominal: 0.025
    assert min(1 - above - below for above, below in ours) > 0.93
    assert max(above for above, _ in plain) > 0.08
    assert max(above for above, _ in ours) < max(0.025, max(above for above, _ in closed))
    if n == 100:
        assert max(above for above, _ in closed) > 0.05


def test_paired_drop_counts_flips() -> None:
    reference = np.array([1, 1, 1, 1, 0, 0, 1, 0], bool)
    model = np.array([1, 0, 0, 1, 1, 0, 0, 0], bool)

    drop = intervals.paired_drop(reference, model)

    assert (drop.n, drop.lost, drop.gained, drop.drop_points) == (8, 3, 1, 25.0)
    assert drop.p == pytest.approx(0.625)
    assert drop.low < 25 < drop.high
    assert drop == intervals.drop_from_counts(3, 1, 8)


def test_a_model_against_itself_has_no_drop() -> None:
    right = np.arange(500) % 10 != 0

    drop = intervals.paired_drop(right, right)

    assert (drop.drop_points, drop.lost, drop.gained, drop.p) == (0.0, 0, 0, 1.0)
    assert drop.high == pytest.approx(-drop.low) and drop.high < 1.0


@pytest.mark.parametrize(("left", "right"), [((3,), (4,)), ((0,), (0,)), ((2, 2), (2, 2))])
def test_paired_drop_refuses_other_shapes(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="same images"):
        intervals.paired_drop(np.zeros(left, bool), np.zeros(right, bool))


def test_images_needed_is_the_first_number_that_settles() -> None:
    drop = intervals.drop_from_counts(9, 5, 300)  # 1.33 points

    needed = sample_size.images_needed(drop, 3.0)

    assert needed is not None and needed > 300
    scaled = [intervals.difference_interval(9 * n / 300, 5 * n / 300, n)[1] for n in (needed - 1, needed)]
    assert scaled[1] < 0.03 <= scaled[0]


def test_images_needed_follows_the_rule_of_thumb() -> None:
    # Half-width 1.96 sqrt(f / n): 960 images resolve one point at 2.5 % flips. The score interval, honest at so few
    # flips, asks for more.
    one_point = sample_size.images_needed(intervals.drop_from_counts(2, 2, 160), 1.0)
    tenth = sample_size.images_needed(intervals.drop_from_counts(2, 2, 160), 0.1)

    assert one_point is not None and 960 < one_point < 1.15 * 960
    assert tenth == pytest.approx(96_000, rel=0.02)


def test_images_needed_has_no_answer_on_the_limit_and_none_to_add_when_settled() -> None:
    on_the_limit = intervals.drop_from_counts(4, 2, 100)

    assert sample_size.images_needed(on_the_limit, 2.0) is None
    assert sample_size.images_needed(intervals.drop_from_counts(2, 2, 5000), 2.0) == 5000
    assert sample_size.images_needed_top1(90, 100, 0.9) is None
    needed = sample_size.images_needed_top1(90, 100, 0.85)
    assert needed is not None and 150 < needed < 250
    assert intervals.wilson(0.9 * needed, needed)[0] > 0.85 >= intervals.wilson(0.9 * (needed - 1), needed - 1)[0]


def test_samples_needed_shrinks_with_the_root() -> None:
    assert sample_size.samples_needed(100, 1.0, 1.2, 1.1) == 400
    assert sample_size.samples_needed(100, 1.0, 1.2, 1.0) is None


def test_certifiable_margin_grows_with_flips_and_falls_with_pictures() -> None:
    few, many = sample_size.certifiable_margin(200, 10), sample_size.certifiable_margin(20_000, 1000)

    assert 3.1 < few < 3.7  # 1.96 sqrt(0.05 / 200) is 3.1
    assert many == pytest.approx(0.31, rel=0.02)
    assert sample_size.certifiable_margin(200, 20) > few


def test_top_k_breaks_ties_like_argmax_and_never_counts_nan() -> None:
    logits = np.array([[1, 1, 1], [1, 1, 1], [0, 2, 2], [0, np.nan, 5], [np.nan, 0, 1]], np.float32)
    labels = np.array([0, 1, 2, 2, 2])

    assert intervals.top_k_correct(logits, labels, 1).tolist() == [True, False, False, False, False]
    assert intervals.top_k_correct(logits, labels, 2).tolist() == [True, True, True, False, False]
    assert intervals.top_k_correct(logits, labels, 5).tolist() == [True, True, True, False, False]


def test_top_1_equals_argmax_on_coarse_logits() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.integers(0, 4, (400, 10)).astype(np.float32), rng.integers(0, 10, 400)

    assert np.array_equal(intervals.top_k_correct(logits, labels, 1), logits.argmax(axis=1) == labels)
    with pytest.raises(ValueError, match="labels"):
        intervals.top_k_correct(logits, labels[:3], 1)


def test_per_class_counts_each_class_apart() -> None:
    labels = np.array([0, 0, 2, 2, 2, 2])
    reference = np.array([1, 1, 1, 0, 1, 0], bool)
    model = np.array([1, 0, 1, 1, 1, 0], bool)

    changes = intervals.per_class(labels, reference, model, 3)

    assert [(c.n, c.reference, c.model, c.lost, c.gained) for c in changes] == [
        (2, 1.0, 0.5, 1, 0),
        (0, None, None, 0, 0),
        (4, 0.5, 0.75, 0, 1),
    ]


def test_960_pictures_certify_a_point_where_a_fortieth_flips() -> None:
    assert sample_size.certifiable_margin(960, 24) == pytest.approx(1.96 * math.sqrt(0.025 / 960) * 100, rel=0.1)
    needed = sample_size.images_for_margin(200, 5, 1.0)
    assert needed == pytest.approx(960, rel=0.15)
    assert (
        sample_size.certifiable_margin(needed, 5 * needed / 200)
        < 1.0
        <= sample_size.certifiable_margin(needed - 1, 5 * (needed - 1) / 200)
    )
    assert sample_size.images_for_margin(200, 5, 0.0) is None


def test_holm_steps_down_and_never_falls() -> None:
    assert intervals.holm(np.array([0.01, 0.04, 0.03])) == pytest.approx([0.03, 0.06, 0.06])
    assert intervals.holm(np.array([0.6, 0.6])).tolist() == [1.0, 1.0] and intervals.holm(np.array([])).size == 0


def test_the_margin_is_the_lead_in_probability() -> None:
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25]])) + np.array([[3.0], [900.0]])

    assert intervals.top_margin(logits) == pytest.approx([0.5, 0.05])
    assert intervals.least_sure(logits, 0.1).tolist() == [False, True]  # at least one
    assert intervals.least_sure(np.zeros((8, 2)), 0.25).tolist() == [True, True] + [False] * 6
