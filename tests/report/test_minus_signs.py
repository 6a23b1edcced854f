"""The page's minus signs: of numbers in its text, and of nothing else."""

from __future__ import annotations

import html
import re
from typing import Any

import pytest

from compress.report.formats import chance
from compress.report.page import section
from compress.report.read import Source
from compress.report.schema import Report
from compress.report.sections.classes import classes
from compress.report.sections.reproduce import manifest
from compress.report.sections.verdict import distillation
from compress.report.templating import environment

MINUS = "\u2212"


def source(**keys: Any) -> Source:
    report = Report.model_validate(keys)
    return Source(report, (), {}, {}, report.per_class)


def written(template: str, **names: Any) -> str:
    return environment().from_string(template).render(**names)


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
    assert html.unescape(written("<p>{{ text | prose }}</p>", text=text)) == f"<p>{shown}</p>"


def test_code_and_attributes_are_as_they_were() -> None:
    command = "compress run a.yaml --set train.lr=1 -5"
    page = section("repeat", manifest(source(command=command, data={"offsets": {"all": [-1, -2]}})))

    assert f"<code>{command}</code>" in page
    assert "<code>{&#34;all&#34;: [-1, -2]}</code>" in page


def test_names_of_classes_are_as_they_are() -> None:
    page = section("classes", classes(source(per_class=[{"class": "below -5", "teacher": 0.5, "student": 0.4}])))

    assert '<span class="name">below -5</span>' in page and f'<span class="change">{MINUS}10.0</span>' in page


def test_sentences_of_the_report_are_shown_with_minus_signs() -> None:
    gain = {
        "gain_points": -0.2,
        "ci95": [-1.0, 0.6],
        "sentence": "it is not shown that the teacher helped: -0.2 [-1.0, 0.6] points",
    }

    shown = section("distillation", distillation(source(distillation=gain)))

    assert f"It is not shown that the teacher helped: {MINUS}0.2 [{MINUS}1.0, 0.6] points" in shown
    assert re.search(r'style="left:[\d.]+%;transform:translateX\(-[\d.]+%\)"', shown)


@pytest.mark.parametrize(
    ("p", "shown"), [(4.3e-19, "< 0.001"), (0.001, "= 0.0010"), (0.034, "= 0.034"), (0.6875, "= 0.69"), (1.0, "= 1.0")]
)
def test_a_p_has_no_exponent(p: float, shown: str) -> None:
    assert chance(p) == shown
