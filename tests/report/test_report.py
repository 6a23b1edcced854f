"""The page from a run folder: complete, bare, hostile, damaged."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from jinja2 import UndefinedError

from compress.core.errors import MissingError, StageError
from compress.report.compare import compare
from compress.report.formats import significant
from compress.report.page import render
from compress.report.plots import STYLE, panel, plain, svg_of
from compress.report.schema import REQUIRED
from compress.report.templating import environment
from compress.report.views import limit_bar
from tests.support import report_example as example

VOID = {"meta", "img", "br", "hr"}
SECTIONS = (
    "verdict requirements distillation models latency teacher training classes pictures device warnings repeat".split()
)


class Page(HTMLParser):
    """Checks that elements are closed in order; collects ids, references, images and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.elements.append((tag, named))
        self.ids += [value for key, value in attrs if key == "id" and value]
        self.references += [
            value for key, value in attrs if key in ("href", "src", "xlink:href", "srcset", "action") and value
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    example.build(folder, n=4000)
    render(folder)
    return folder


@pytest.fixture
def run(full: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(full, tmp_path / "run"))


def change(folder: Path, **keys: Any) -> None:
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    (folder / "report.json").write_text(json.dumps(report | keys))


def page_of(folder: Path) -> Page:
    return Page(render(folder).read_text(encoding="utf-8"))


def test_the_full_page_shows_every_section_in_order(full: Path) -> None:
    page = Page((full / "report.html").read_text(encoding="utf-8"))

    sections = [attributes["id"] for tag, attributes in page.elements if tag == "section"]
    assert sections == SECTIONS
    assert page.open == []
    for said in (
        "Passed",
        "3 of 3 requirements met",
        "student.int8.onnx",
        "recipes/mobilenet.yaml:31:12",
        "Ankle boot",
        "resnet8x4",
        "trained here on NVIDIA H200",
        "dhkd on NVIDIA T4.",
    ):
        assert said in page.text


def test_numbers_reach_the_page_unchanged(full: Path) -> None:
    report = json.loads((full / "report.json").read_text(encoding="utf-8"))
    text = Page((full / "report.html").read_text(encoding="utf-8")).text

    for row in report["models"]:
        assert f"{100 * row['top1']:.2f} %" in text and row["sha256"] in text
    assert f"{report['comparisons'][1]['speedup_p50']:.3g}\u00d7 faster" in text
    assert report["distillation"]["sentence"][1:] in text


def test_on_a_phone_every_file_has_a_column_and_the_measure_stands_above(full: Path) -> None:
    text = (full / "report.html").read_text(encoding="utf-8")
    (models,) = re.findall(r'<table class="columns" style="--columns:(\d+)">(.*?)</table>', text, flags=re.DOTALL)

    assert (
        {row.count("<td") for row in models[1].split("</thead>")[1].split("</tr>")[:-1]}
        == {int(models[0])}
        == {len(example.FILES)}
    )
    narrow = text.split("@media (max-width: 38rem)")[1].split("@media")[0]
    assert "repeat(var(--columns)" in narrow and re.search(r"\.columns tbody th \{[^}]*grid-column: 1 / -1", narrow)


def test_a_student_that_is_larger_and_slower_is_called_so(run: Path) -> None:
    rows = json.loads((run / "report.json").read_text(encoding="utf-8"))["comparisons"]
    change(run, comparisons=[row | {"speedup_p50": 0.8, "size_ratio": 0.25} for row in rows], requirements=[])

    text = page_of(run).text
    assert (
        "1.25\u00d7 slower" in text and "4.00\u00d7 larger" in text and "\u00d7 smaller" not in text.split("Models")[1]
    )


def test_plots_are_written_and_inlined(full: Path) -> None:
    page = Page((full / "report.html").read_text(encoding="utf-8"))

    assert sorted(path.name for path in (full / "plots").iterdir()) == ["accuracy.svg", "latency.svg", "loss.svg"]
    drawings = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(drawings) == 3 and all(drawing["role"] == "img" and drawing["aria-label"] for drawing in drawings)
    assert "var(--c-student)" in (full / "report.html").read_text(encoding="utf-8")
    assert "#c84e00" in (full / "plots" / "accuracy.svg").read_text(encoding="utf-8") and "var(" not in (
        full / "plots" / "accuracy.svg"
    ).read_text(encoding="utf-8")


def test_a_wide_range_has_a_logarithmic_axis_with_plain_numbers(run: Path) -> None:
    with np.load(run / "latency.npz") as stored:
        samples = {name: values * (40 if name == "teacher.onnx" else 1) for name, values in stored.items()}
    np.savez(run / "latency.npz", **samples)
    page_of(run)

    drawn = (run / "plots" / "latency.svg").read_text(encoding="utf-8")
    said = [text for text in re.findall(r">([^<>]+)</text>", drawn) if "ms" not in text]
    assert "(log)" in drawn and len(said) >= 3 and all(re.fullmatch(r"[125]0*|0\.0*[125]", text) for text in said), said


def test_the_page_needs_nothing_but_itself(full: Path) -> None:
    text = (full / "report.html").read_text(encoding="utf-8")
    page = Page(text)

    assert not re.search(r"https?:|url\((?!#)|@import|<script|<link|<iframe|javascript:", text)
    assert all(reference.startswith(("#", "data:image/png;base64,")) for reference in page.references)
    anchors = [reference[1:] for reference in page.references if reference.startswith("#")]
    assert set(anchors) <= set(page.ids)
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert len(text) < 400_000


def test_the_page_is_accessible(full: Path) -> None:
    page = Page((full / "report.html").read_text(encoding="utf-8"))

    assert ("html", {"lang": "en"}) in page.elements
    assert sum(tag == "h1" for tag, _ in page.elements) == 1
    assert all(attributes.get("alt") for tag, attributes in page.elements if tag == "img")
    assert all(attributes.get("scope") in ("row", "col") for tag, attributes in page.elements if tag == "th")
    assert sum(tag == "caption" for tag, _ in page.elements) == sum(tag == "table" for tag, _ in page.elements) >= 4
    assert all(
        attributes.get("aria-label") for _, attributes in page.elements if attributes.get("role") in ("img", "region")
    )


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_colours_have_contrast_in_both_modes(full: Path, mode: int) -> None:
    blocks = re.findall(r":root \{(.*?)\}", (full / "report.html").read_text(encoding="utf-8"), flags=re.DOTALL)
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", blocks[mode]))

    for name in ("ink", "muted", "good", "bad", "unsure"):  # text: WCAG AA
        assert contrast(colours[name], colours["card"]) >= 4.5 and contrast(colours[name], colours["ground"]) >= 4.5, (
            name
        )
    for name in ("good", "bad", "unsure"):
        assert contrast(colours[name], colours[f"{name}-soft"]) >= 4.5, name
    for name in ("c-teacher", "c-student", "c-float", "c-baseline", "c-other"):  # lines: 3 to 1
        assert contrast(colours[name], colours["card"]) >= 3, name


def test_equal_inputs_give_equal_bytes(full: Path, run: Path) -> None:
    first = {path.name: path.read_bytes() for path in [full / "report.html", *(full / "plots").iterdir()]}

    render(run)
    shutil.rmtree(run / "plots")
    render(run)

    assert {path.name: path.read_bytes() for path in [run / "report.html", *(run / "plots").iterdir()]} == first
    assert not list(run.rglob("*.partial"))


def test_only_the_contracts_keys_are_needed(run: Path) -> None:
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    bare = {key: report[key] for key in REQUIRED}
    bare["teacher"] = {"model": "resnet20", "candidates": []}
    bare["student"] = {"model": "mobilenet_v2"}
    bare["models"] = [
        {"role": row["role"], "precision": row["precision"], "file": row["file"], "top1": None, "latency_ms": None}
        for row in bare["models"]
    ]
    bare |= {"comparisons": [], "requirements": [], "seconds": {}, "reused": [], "environment": {}}
    for path in run.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (run / "report.json").write_text(json.dumps(bare))

    page = page_of(run)

    assert [attributes["id"] for tag, attributes in page.elements if tag == "section"] == [
        "verdict",
        "models",
        "repeat",
    ]
    assert "sets no requirement" in page.text and "Done" in page.text and "Passed" not in page.text
    assert not (run / "plots").exists()


@pytest.mark.parametrize("gone", ["predictions.npz", "latency.npz", "pictures.npz", "history"])
def test_each_file_beside_the_report_may_be_missing(run: Path, gone: str) -> None:
    path = run / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()

    page = page_of(run)

    absent = {"latency.npz": set(), "pictures.npz": {"pictures"}, "history": {"training"}, "predictions.npz": set()}[
        gone
    ]
    assert {attributes["id"] for tag, attributes in page.elements if tag == "section"} == set(SECTIONS) - absent


def test_nulls_are_shown_as_not_measured(run: Path) -> None:
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    for row in report["models"]:
        row |= {"peak_memory_bytes": None, "top5": None, "int8_mac_share": None}
        row["latency_ms"] |= {"p99": None, "p50_ci95": None}
    report["models"][0]["peak_memory_bytes"] = 1
    report["requirements"][0] |= {"value": None, "ci95": None, "verdict": "not judged"}
    change(run, **report | dict.fromkeys(("per_class", "unreadable", "distillation", "baseline", "int8_against_float")))

    text = page_of(run).text

    assert "not measured" in text and "not judged" in text and "Top-5" not in text
    assert "What distillation was worth" not in text
    assert "None" not in text and "nan" not in text.lower().split()


def test_classes_come_from_the_predictions_where_the_report_has_none(run: Path, full: Path) -> None:
    change(run, per_class=None)

    assert page_of(run).text == Page((full / "report.html").read_text(encoding="utf-8")).text


@pytest.mark.parametrize(("answer", "said"), [("failed", "Failed"), ("undecided", "Undecided")])
def test_the_verdict_is_said(run: Path, answer: str, said: str) -> None:
    rows = json.loads((run / "report.json").read_text(encoding="utf-8"))["requirements"]
    change(run, status=answer, requirements=[{**row, "verdict": answer} for row in rows])

    page = page_of(run)

    assert said in page.text and "0 of 3 requirements met" in page.text and f"3 {answer}" in page.text
    assert any(tag == "section" and answer in (attributes.get("class") or "") for tag, attributes in page.elements)


def test_every_text_of_a_user_is_escaped(run: Path) -> None:
    evil = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>&amp; $x^2$ ${body} \u202e\x00\ud800"
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))

    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: item
                if key in ("file", "model", "against", "role", "schema", "status", "verdict")
                else poison(item)
                for key, item in value.items()
            }
        if isinstance(value, list):
            return [poison(item) for item in value]
        return evil if isinstance(value, str) else value

    poisoned = poison(report)
    poisoned["environment"][evil] = evil
    poisoned["teacher"]["model"] = poisoned["student"]["model"] = evil
    poisoned["device"][0]["file"] = poisoned["teacher"]["candidates"][0]["model"] = evil
    (run / "report.json").write_text(json.dumps(poisoned))
    with np.load(run / "latency.npz") as archive:
        samples = {name: archive[name] for name in archive.files}
    np.savez(run / "latency.npz", **samples, **{"$a<b>&\u4e2d$": np.ones(9)})
    (run / "history" / "a&b<i>.csv").write_text("epoch,<u>,top1_validation\n1,0.5,0.4\n")

    page = page_of(run)

    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "iframe", "u"} and page.open == []
    assert not [attributes for _, attributes in page.elements if any(key.startswith("on") for key in attributes)]
    assert "alert('x')" in page.text  # shown, not run
    assert "\x00" not in page.text


def test_the_accuracy_of_a_last_layer_alone_is_shown(run: Path) -> None:
    floor = "A last layer alone, on the pretrained features, reaches 81.2 %."
    assert floor not in page_of(run).text
    student = json.loads((run / "report.json").read_text())["student"]
    change(run, student={**student, "probe_top1_validation": 0.812})

    assert floor in page_of(run).text


def test_many_classes_are_folded(run: Path) -> None:
    rows = [{"class": f"class {place}", "n": 10, "teacher": 0.9, "student": 0.9 - place / 1000} for place in range(100)]
    change(run, per_class=rows)

    assert "The 84 classes between" in page_of(run).text


def test_large_pictures_become_thumbnails(run: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (40, 300, 200, 3)).astype(np.uint8)
    zeros = np.zeros(40, int)
    np.savez(run / "pictures.npz", images=noise, labels=zeros, teacher=zeros, student=zeros + 77)

    page = page_of(run)

    images = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(images) == 24 and all(
        len(image["src"] or "") < 40_000 and image.get("class") is None for image in images
    )
    assert "16 more not shown" in page.text and "the student predicts 77" in page.text


def test_a_missing_report_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="compress run RECIPE"):
        render(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not a JSON file"),
        ("[]", "not a report"),
        ('{"schema": 1}', "recipe, status, teacher"),
        ("null", "not a report"),
    ],
)
def test_a_file_that_is_no_report_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "report.json").write_text(text)

    with pytest.raises(StageError, match=said):
        render(tmp_path)


def test_another_schema_is_refused(run: Path) -> None:
    change(run, schema=2)

    with pytest.raises(StageError, match="schema 2"):
        render(run)


@pytest.mark.parametrize("name", ["latency.npz", "pictures.npz", "predictions.npz"])
def test_a_damaged_file_is_named(run: Path, name: str) -> None:
    (run / name).write_bytes((run / name).read_bytes()[:200])

    with pytest.raises(StageError, match=f"{name}: cannot be read"):
        render(run)


def test_pictures_of_another_kind_are_refused(run: Path) -> None:
    np.savez(
        run / "pictures.npz",
        images=np.zeros((2, 8, 8), np.float32),
        labels=np.zeros(2),
        teacher=np.zeros(2),
        student=np.zeros(2),
    )

    with pytest.raises(StageError, match="uint8"):
        render(run)


def test_runs_stand_side_by_side(run: Path, full: Path) -> None:
    change(run, recipe="other", distillation=None)

    lines = compare([full, run / "report.json"]).splitlines()

    assert lines[0].split() == ["mobilenet", "other"]
    assert set(lines[1]) == {"-"}
    top1 = next(line for line in lines if line.startswith("top-1")).split()
    assert top1[1] == top1[3] == "89.60"
    assert next(line for line in lines if line.startswith("distillation")).endswith("-")
    assert all(line == line.rstrip() for line in lines)
    assert (
        next(line for line in lines if line.startswith("test images")).split()[2] == "4,000"
        and "do not compare" not in lines[-1]
    )

    data = json.loads((run / "report.json").read_text(encoding="utf-8"))["data"]
    change(run, data={**data, "test_pictures": 48}, latency={"disturbances": ["other processes used 1.30 cores"]})
    assert compare([full, run]).splitlines()[-2:] == [
        "the runs were tested on different images: accuracies and drops do not compare",
        "other: times are doubtful: other processes used 1.30 cores",
    ]


def test_the_headline_shows_the_speed_that_was_judged_last_and_both_where_they_disagree(run: Path) -> None:
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    first = report["comparisons"][1]["speedup_p50"]
    judged = [{**row, "value": 2 * first} if row["name"] == "min_speedup" else row for row in report["requirements"]]
    change(run, requirements=judged)

    text = page_of(run).text
    assert (
        f"{significant(2 * first)}\u00d7 faster" in text and f"{significant(first)}\u00d7 when it was validated" in text
    )
    assert next(line for line in compare([run]).splitlines() if line.startswith("x teacher")).endswith(
        f" {significant(2 * first)}"
    )


def test_the_headlines_latency_is_the_one_that_was_judged_last(run: Path) -> None:
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    row = next(row for row in report["requirements"] if row["name"] == "min_speedup")
    change(run, requirements=[*report["requirements"], {**row, "name": "max_latency_ms", "value": 0.777, "limit": 1.0}])

    assert "0.777 ms an image" in page_of(run).text


def test_why_a_verdict_may_mean_little_stands_beside_it(run: Path) -> None:
    said = "student.int8.onnx: it is of no use yet"
    change(run, cautions=[said], warnings=[said, "another"])

    text = page_of(run).text
    assert text.index("Passed") < text.index(said) < text.index("2 warnings") < text.rindex(said)


def test_letters_of_all_scripts_stay_in_the_plots() -> None:
    assert plain("\u00e4pfel \u72ac\u306e\u5199\u771f") == "\u00e4pfel \u72ac\u306e\u5199\u771f"
    assert plain("a\x07b\u200b") == "a?b?" and len(plain("x" * 50)) == 36


def test_a_plot_writes_letters_that_its_font_lacks_as_text() -> None:
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        figure, axes = panel(1.0)
        axes.set_xlabel("\u72ac")
        warnings.simplefilter("error")
        assert "\u72ac</text>" in svg_of(figure)


def test_few_classes_have_no_top5(run: Path) -> None:
    assert "Top-5" in page_of(run).text
    change(run, classes=["a", "b", "c", "d", "e"], per_class=[])
    assert "Top-5" not in page_of(run).text


def test_a_bar_holds_the_limit_the_value_and_the_interval() -> None:
    bar = limit_bar(1.0, (0.5, 1.5), 2.0, at_most=True, mark="limit", alt="a <b>", tone="passed")
    drawn = environment().from_string('{% import "macros.html" as m %}{{ m.bar(bar) }}').render(bar=bar)

    places = {kind: float(x) for kind, x in re.findall(r'class="(tick|dot|span)" style="left:([\d.]+)%', drawn)}
    assert 0 < places["span"] < places["dot"] < places["tick"] < 100
    assert 'aria-label="a &lt;b&gt;"' in drawn and f"left:0;width:{places['tick']:g}%" in drawn
    # There is no width to divide by.
    assert limit_bar(0.0, None, 0.0, at_most=True, mark="", alt="", tone="").tick == 50


def test_a_name_that_a_template_misspells_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="'sentense'"):
        environment().from_string("{{ view.sentense }}").render(view={"sentence": "x"})


def test_numbers_have_three_digits() -> None:
    assert [significant(value) for value in (0.2114, 12.345, 1234.5, 0)] == ["0.211", "12.3", "1,234", "0"]
