"""The page's minus signs: of numbers in its text, and of nothing else."""

from __future__ import annotations

import html

import pytest

from compress.report.formats import chance
from compress.report.markup import bracket, el, join, literal
from compress.report.read import Source
from compress.report.schema import ClassRow, Report
from compress.report.sections.reproduce import _value
from compress.report.sections.teacher_training_latency import _class_row
from compress.report.sections.verdict import distillation

MINUS = "\u2212"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("the teacher helped: -0.2 [-1.0, 0.6] points", f"the teacher helped: {MINUS}0.2 [{MINUS}1.0, 0.6] points"),
        ("-1,234 pictures (-5 %), then -3.", f"{MINUS}1,234 pictures ({MINUS}5 %), then {MINUS}3."),
        ("[-3.0, -1.2]", f"[{MINUS}3.0, {MINUS}1.2]"),
        *(
            (same, same)
            for same in (
                "2026-11-27",
                "-2026-11-27",
                "3-5",
                "3 - 5",
                "1.2e-05",
                "wrn-40-2",
                "v1.-2",
                "--epochs 3",
                "--1",
                "-1.png",
                "pictures/-1/a.png",
                "my -1/a.png",
                "train.lr=-1",
                "-20x",
                "'-1'",
                "sha256 b30d-2170",
            )
        ),
    ],
)
def test_a_hyphen_is_a_minus_in_front_of_a_number_by_itself(text: str, shown: str) -> None:
    assert el("p", text).text == f"<p>{html.escape(shown)}</p>"


def test_code_and_attributes_are_as_they_were() -> None:
    assert (
        el("code", "head -5").text == "<code>head -5</code>"
        and el("code", ["tail", [" -5"]]).text == "<code>tail -5</code>"
    )
    assert el("i", "x", style="translate( -5%)").text == '<i style="translate( -5%)">x</i>'
    assert join(_value({"offsets": [-1, -2]})).text == "<code>{&quot;offsets&quot;: [-1, -2]}</code>"


def test_names_of_classes_are_as_they_are() -> None:
    assert (
        "below -5"
        in _class_row(ClassRow.model_validate({"class": "below -5", "teacher": 0.5, "student": 0.4}), 10.0).text
    )
    assert literal("-1 < 0").text == "-1 &lt; 0"


def test_numbers_and_intervals_too() -> None:
    assert el("td", -2, " of ", -0.5).text == f"<td>{MINUS}2 of {MINUS}0.5</td>"
    assert f"[{MINUS}1.0, 0.6]" in join(bracket((-1.0, 0.6))).text


def test_sentences_of_the_report_are_shown_with_minus_signs() -> None:
    gain = {
        "gain_points": -0.2,
        "ci95": [-1.0, 0.6],
        "sentence": "it is not shown that the teacher helped: -0.2 [-1.0, 0.6] points",
    }

    shown = join(distillation(Source(Report.model_validate({"distillation": gain}), (), {}, {}, []))).text

    assert (
        f"It is not shown that the teacher helped: {MINUS}0.2 [{MINUS}1.0, 0.6] points" in shown
        and "translateX(-" in shown
    )


@pytest.mark.parametrize(
    ("p", "shown"), [(4.3e-19, "< 0.001"), (0.001, "= 0.0010"), (0.034, "= 0.034"), (0.6875, "= 0.69"), (1.0, "= 1.0")]
)
def test_a_p_has_no_exponent(p: float, shown: str) -> None:
    assert chance(p) == shown
