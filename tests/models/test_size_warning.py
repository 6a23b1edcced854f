from __future__ import annotations

import pytest

from compress.models.size_warning import size_increase_warning


@pytest.mark.parametrize(
    ("plain", "shipped", "said"),
    [
        ((1000, 2000), (1100, 2200), None),
        ((1000, 2000), (900, 2000), None),
        ((1000, 2000), (1101, 2000), "+10 %"),
        ((1000, 2000), (1000, 4000), "+100 %"),
    ],
)
def test_a_student_over_a_tenth_larger_gives_a_warning_with_both_sizes(plain, shipped, said):
    sentence = size_increase_warning("net", plain, shipped)
    assert (sentence is None) == (said is None)
    if sentence is not None:
        assert said in sentence and f"{shipped[0]:,} parameters instead of {plain[0]:,}" in sentence
