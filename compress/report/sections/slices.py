"""The page's part on where the shipped student got worse: the pictures of which the teacher was least sure, and single classes."""

from __future__ import annotations

from compress.report.formats import chance, is_number, signed
from compress.report.markup import Child, Html, bracket, el, literal, percent, section, table
from compress.report.read import Source, teacher_row
from compress.report.schema import ClassRow, SliceRow
from compress.report.schema.base import Number
from compress.report.sections.teacher_training_latency import thumbnail


def slices(source: Source) -> Html | None:
    """Drops on slices and in the classes that got worse beyond chance, with pictures."""
    rows = source.report.slices
    worse = [row for row in source.per_class if row.worse or row.float_worse]
    if not rows and not worse:
        return None
    teacher = teacher_row(source.report).file
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
            row.slice,
            *_cells("teacher" if row.against == teacher else "float student", row.reference, row.top1, row),
        ]
        for row in rows
    ]
    lines += [[f"class {row.name}", *_cells("teacher", row.teacher, row.student, row)] for row in worse if row.worse]
    lines += [
        [f"class {row.name}", *_cells("float student", row.float_top1, row.student, _against_float(row))]
        for row in worse
        if row.float_worse
    ]
    lead = (
        "A small drop on average may be a large one where it is hard: on the pictures whose first answer the teacher gives with the least lead over "
        "its second, and in single classes. " + _said(source.per_class, worse) + " p is McNemar's exact one."
    )
    return section("slices", "Where it got worse", table("Slices", head, lines), _figures(source), lead=lead)


def _said(per_class: list[ClassRow], worse: list[ClassRow]) -> str:
    if not any(row.worse is not None for row in per_class):
        return ""
    if not worse:
        return "No class got worse beyond chance (5 %, corrected for the number of classes)."
    names = ", ".join(str(row.name) for row in worse)
    return f"Worse beyond chance (5 %, corrected for the number of classes): {names}."


def _against_float(row: ClassRow) -> SliceRow:
    """Return a class's comparison with the float student."""
    return SliceRow(
        n=row.n,
        lost=row.float_lost,
        gained=row.float_gained,
        drop_points=row.float_drop_points,
        drop_ci95=row.float_drop_ci95,
        mcnemar_p=row.float_mcnemar_p,
    )


def _cells(against: str, reference: Number | None, own: Number | None, row: ClassRow | SliceRow) -> list[Child]:
    drop, p = row.drop_points, row.mcnemar_p
    shown: Child = [signed(drop, 1).lstrip("+"), " ", bracket(row.drop_ci95)] if is_number(drop) else None
    flips = f"{row.lost} / {row.gained}"
    tested = chance(p).lstrip("= ") if is_number(p) else None
    return [against, shown, flips, tested, percent(reference), percent(own), str(row.n)]


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
