"""Student's t: values of published tables."""

from __future__ import annotations

import math

import pytest

from compress.verdict import student_t


@pytest.mark.parametrize(
    ("degrees", "expected"), [(1, 12.7062), (2, 4.3027), (9, 2.2622), (19, 2.0930), (49, 2.0096), (1000, 1.9623)]
)
def test_quantiles_are_those_of_the_tables(degrees: int, expected: float) -> None:
    assert student_t.quantile(0.95, degrees) == pytest.approx(expected, abs=5e-5)
    assert student_t.two_sided_p(student_t.quantile(0.95, degrees), degrees) == pytest.approx(0.05, abs=1e-9)


def test_one_degree_is_the_cauchy_distribution() -> None:
    for t in (0.0, 0.3, 1.0, 7.0, 1e6):
        assert student_t.two_sided_p(t, 1) == pytest.approx(1 - 2 * math.atan(t) / math.pi, abs=1e-12)
    assert student_t.two_sided_p(math.inf, 3) == 0.0


def test_impossible_arguments_are_refused() -> None:
    for confidence, degrees in ((1.0, 5), (0.95, 0)):
        with pytest.raises(ValueError, match="degrees"):
            student_t.quantile(confidence, degrees)
