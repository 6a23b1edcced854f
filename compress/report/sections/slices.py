"""The page's part on where the shipped student got worse: the pictures of which the teacher was least sure, and single classes."""

from __future__ import annotations

from typing import Any

from compress.report.markup import (
    Child,
    Html,
    bracket,
    chance,
    el,
    interval_of,
    is_number,
    literal,
    percent,
    section,
    signed,
    table,
)
from compress.report.read import Source, teacher_row
from compress.report.sections.teacher_training_latency import thumbnail


def slices(source: Source) -> Html | None:
    """Drops on slices and in the classes that got worse beyond chance, with pictures."""
    rows = source.report.get("slices") or []
    worse = [row for row in source.per_class if row.get("worse") or row.get("float_worse")]
    if not rows and not worse:
        return None
    teacher = teacher_row(source.report).get("file")
    head: list[Child] = [
        "Pictures",
        "Against",
        "Drop, points",
        "Lost / gained",
        "p",
        "Its top\u20111",
        "The student's",
        "Number",
    ]
    lines = [
        [
            row.get("slice"),
            *_cells(row, "teacher" if row.get("against") == teacher else "float student", "reference", "top1", ""),
        ]
        for row in rows
    ]
    lines += [
        [f"class {row['class']}", *_cells(row, "teacher", "teacher", "student", "")]
        for row in worse
        if row.get("worse")
    ]
    lines += [
        [f"class {row['class']}", *_cells(row, "float student", "float", "student", "float_")]
        for row in worse
        if row.get("float_worse")
    ]
    lead = (
        "A small drop on average may be a large one where it is hard: on the pictures whose first answer the teacher gives with the least lead over "
        "its second, and in single classes. " + _said(source.per_class, worse) + " p is McNemar's exact one."
    )
    return section("slices", "Where it got worse", table("Slices", head, lines), _figures(source), lead=lead)


def _said(per_class: list[dict[str, Any]], worse: list[dict[str, Any]]) -> str:
    if not any("worse" in row for row in per_class):
        return ""
    if not worse:
        return "No class got worse beyond chance (5 %, corrected for the number of classes)."
    names = ", ".join(str(row["class"]) for row in worse)
    return f"Worse beyond chance (5 %, corrected for the number of classes): {names}."


def _cells(row: dict[str, Any], against: str, reference: str, own: str, prefix: str) -> list[Child]:
    drop, p = row.get(f"{prefix}drop_points"), row.get(f"{prefix}mcnemar_p")
    shown: Child = (
        [signed(drop, 1).lstrip("+"), " ", bracket(interval_of(row.get(f"{prefix}drop_ci95")))]
        if is_number(drop)
        else None
    )
    flips = f"{row.get(f'{prefix}lost')} / {row.get(f'{prefix}gained')}"
    tested = chance(p).lstrip("= ") if is_number(p) else None
    return [against, shown, flips, tested, percent(row.get(reference)), percent(row.get(own)), str(row.get("n"))]


def _figures(source: Source) -> Html | None:
    """The pictures behind the rows, which the teacher gets right and the student wrong."""
    found = source.pictures
    if not {"slice_images", "slice_labels", "slice_student", "slice_margin", "slice_name"} <= set(found) or not len(
        found["slice_images"]
    ):
        return None
    figures = []
    for image, label, student, margin, group in zip(
        *(found[f"slice_{key}"] for key in ("images", "labels", "student", "margin", "name")), strict=True
    ):
        name, answer = literal(source.class_name(label)), literal(source.class_name(student))
        said = el(
            "figcaption",
            el("b", name),
            ", the student says ",
            el("b", answer),
            " (",
            literal(group),
            f"; the teacher's lead {margin:.2f})",
        )
        drawn = el(
            "img",
            src=thumbnail(image),
            alt=f"test picture of {source.class_name(label)}",
            class_="small" if image.shape[0] < 64 else None,
        )
        figures.append(el("figure", drawn, said))
    title = f"{len(figures)} of the pictures that were lost there"
    return el("details", el("summary", title), el("div", *figures, class_="pictures"))
