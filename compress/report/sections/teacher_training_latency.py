"""The lower part of the page: the teacher, the training, the latency, the classes, the pictures, the warnings."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from compress.report import plots
from compress.report.formats import is_number, signed, significant
from compress.report.markup import (
    NOT_MEASURED,
    Child,
    Html,
    count,
    duration,
    el,
    escape,
    literal,
    percent,
    section,
    table,
)
from compress.report.read import Source, method_of
from compress.report.schema import CandidateRow, ClassRow, Report, TimingSection
from compress.report.schema.measurements import PhotoTiming, SustainedRun

MOST_PICTURES = 24
MOST_CLASSES = 20
THUMBNAIL = 112  # pixels; smaller pictures are kept as they are and enlarged by the browser


def teacher(source: Source) -> Html | None:
    """Every candidate, and why one won."""
    report = source.report
    candidates = report.teacher.candidates
    if not candidates:
        return None
    proxy = any(row.proxy_top1_validation is not None for row in candidates)
    ranking = ["Rank", "Student's top-1, proxy", "Rank by proxy", "Behind the best, points"] if proxy else []
    head = ["Candidate", "Top-1, validation", *ranking, "Parameters", "MACs", "Epochs", "Time", "From"]
    rows = [
        [
            [row.model, " ", el("span", "\u2713 chosen", class_="chip passed") if row.chosen else None],
            percent(row.top1_validation, 2),
            *(
                [
                    count(row.rank),
                    percent(row.proxy_top1_validation, 2),
                    count(row.proxy_rank),
                    _behind(row),
                ]
                if proxy
                else []
            ),
            count(row.params),
            count(row.macs),
            count(row.epochs),
            duration(row.seconds),
            " on ".join(part for part in (row.origin, row.gpu) if part) or NOT_MEASURED,
        ]
        for row in candidates
    ]
    return section("teacher", "Teacher", table("Teacher candidates", head, rows), lead=report.teacher.reason)


def _behind(row: CandidateRow) -> Child:
    """How far the student of a candidate is behind the best one's, with its interval, and whether that is shown."""
    points, interval = row.proxy_behind_points, row.proxy_behind_ci95
    if points is None or interval is None:
        return NOT_MEASURED
    return f"{points:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]{'' if interval[0] > 0 else ', no difference shown'}"


def figure_of(drawn: Mapping[str, str], name: str, alt: str, caption: Child = None) -> Html | None:
    if name not in drawn:
        return None
    return el(
        "figure", Html(plots.inline(drawn[name], name, escape(alt))), el("figcaption", caption) if caption else None
    )


def training(source: Source, drawn: Mapping[str, str]) -> Html | None:
    """Validation accuracy and losses, the baseline beside the student."""
    if not {"accuracy", "loss"} & set(drawn):
        return None
    ends = [(curve.name, float(curve.top1[-1])) for curve in source.curves if curve.top1 is not None]
    last = [f"{name} {100 * top1:.1f} %" for name, top1 in ends if np.isfinite(top1)]
    accuracy = figure_of(drawn, "accuracy", f"Validation accuracy by epoch; at the end: {', '.join(last)}")
    loss = figure_of(drawn, "loss", "Training losses by epoch of the student and the baseline")
    method, gpu = method_of(source.report), source.report.student.gpu
    lead = (
        f"Distilled with {method}{f' on {gpu}' if gpu else ''}. " if method else ""
    ) + "Accuracies are on pictures carved from the training set."
    return section("training", "Training", el("div", accuracy, loss, class_="plots"), lead=lead)


def latency(source: Source, drawn: Mapping[str, str]) -> Html | None:
    """The raw samples, and what integer arithmetic was worth."""
    note = source.report.int8_against_float.sentence if source.report.int8_against_float else None
    if "latency" not in drawn:
        return section("latency", "Latency", el("p", note)) if note else None
    medians = [
        f"{name} {significant(float(np.median(values)))} ms" for name, values in source.latency.items() if values.size
    ]
    how = "Each shape holds every timed run that kept its core; the upright line is the median. The models took turns, so a slow moment hits all of them."
    body = figure_of(drawn, "latency", "Distribution of latencies; medians: " + ", ".join(medians))
    further = [el("p", text, class_="quiet") for text in _circumstances(source.report)]
    aside = el(
        "div", el("p", note, class_="said") if note else None, el("p", how, class_="quiet"), *further, class_="aside"
    )
    return section("latency", "Latency", el("div", body, aside, class_="plots"))


def _circumstances(report: Report) -> list[str]:
    """How the machine was while time was measured, one sentence each."""
    timing = report.latency or TimingSection()
    photo, sustained = timing.photo or PhotoTiming(), timing.sustained or SustainedRun()
    said = []
    if timing.rounds is not None:
        load = timing.other_cores
        others = (
            f"other processes used {load:.2f} cores" if is_number(load) else "the load of other processes is not known"
        )
        tries = f", measured {timing.attempts} times because it was disturbed" if (timing.attempts or 1) > 1 else ""
        lost = sum(timing.interrupted.values())
        runs = (
            "run that lost its core to other processes does"
            if lost == 1
            else "runs that lost their core to other processes do"
        )
        left = f"; {lost:,} {runs} not count" if lost and not timing.unfit else ""
        said.append(
            f"{timing.rounds} rounds{tries}; {others}{left}; clock governor: {timing.governor or 'not shown by this host'}."
        )
    if photo.pictures:
        said.append(f"Photo to answer: decoding ({photo.decoder}), resizing and inference of {photo.pictures}.")
    return said + ([str(sustained.sentence)] if sustained.sentence else [])


def classes(source: Source) -> Html | None:
    """How each class changed from teacher to student, the worst first."""
    rows = [row for row in source.per_class if is_number(row.teacher) and is_number(row.student)]
    if not rows:
        return None
    rows = sorted(rows, key=_change)
    widest = max(max(abs(100 * _change(row)) for row in rows), 1.0)
    shown, rest = (rows, []) if len(rows) <= MOST_CLASSES else (rows[:12] + rows[-4:], rows[12:-4])
    hidden = (
        el("details", el("summary", f"The {len(rest)} classes between"), _class_list(rest, widest)) if rest else None
    )
    lead = (
        "Top-1 of the teacher and of the shipped student on the test pictures of each class, and the change in points, worst first. "
        "A class has few pictures: only large changes mean something."
    )
    return section("classes", "Classes", _class_list(shown, widest), hidden, lead=lead)


def _class_list(rows: list[ClassRow], widest: float) -> Html:
    return el("ul", *(_class_row(row, widest) for row in rows), class_="classes")


def _change(row: ClassRow) -> float:
    """Return the change of accuracy from teacher to student, a fraction."""
    return (row.student or 0.0) - (row.teacher or 0.0)


def _class_row(row: ClassRow, widest: float) -> Html:
    change = 100 * _change(row)
    width = round(50 * abs(change) / widest, 2)
    swing = el(
        "span",
        el("i", class_="down" if change < 0 else "up", style=f"width:{width}%"),
        class_="swing",
        aria_hidden="true",
    )
    pair = el("span", percent(row.teacher), " \u2192 ", percent(row.student), class_="pair")
    title = f"{row.n} pictures" if row.n else None
    return el(
        "li",
        el("span", literal(row.name), class_="name", title=title),
        pair,
        swing,
        el("span", signed(change), class_="change"),
    )


def pictures(source: Source) -> Html | None:
    """What the student gets wrong and the teacher right."""
    found = source.pictures
    if not found or not len(found["images"]):
        return None
    figures = []
    for image, label, student in list(zip(found["images"], found["labels"], found["student"], strict=True))[
        :MOST_PICTURES
    ]:
        name = source.class_name(label)
        said = (el("b", literal(name)), ", the student says ", el("b", literal(source.class_name(student))))
        drawn = el(
            "img", src=thumbnail(image), alt=f"test picture of {name}", class_="small" if image.shape[0] < 64 else None
        )
        figures.append(el("figure", drawn, el("figcaption", said)))
    more = int(found["total"] if "total" in found else len(found["images"])) - len(figures)
    lead = f"The teacher is right, the shipped student is wrong{f' ({more:,} more not shown)' if more > 0 else ''}."
    return section("pictures", "Pictures the student lost", el("div", *figures, class_="pictures"), lead=lead)


def thumbnail(image: NDArray[np.uint8]) -> str:
    """A picture (H, W, 3) as a data URI, made small."""
    picture = Image.fromarray(image)
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def warnings(source: Source) -> Html | None:
    """What the run wants to be known."""
    report = source.report
    notes, unreadable = report.warnings, report.unreadable
    if not notes and not unreadable:
        return None
    items = [el("li", note) for note in notes]
    skipped = [el("li", el("code", row.path), ": ", row.reason) for row in unreadable]
    title = f"{len(skipped)} unreadable {'picture was' if len(skipped) == 1 else 'pictures were'} skipped"
    lost = el("details", el("summary", title), el("ul", *skipped, class_="notes")) if skipped else None
    return section("warnings", "Warnings", el("ul", *items, class_="notes") if items else None, lost)
