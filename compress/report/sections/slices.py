"""Where the shipped student got worse: on the images that the teacher is least sure of, and in single classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compress.report import formats
from compress.report.formats import chance, is_number, percent, signed
from compress.report.read import Source, teacher_row
from compress.report.schema import ClassRow, SliceRow
from compress.report.schema.base import Number
from compress.report.sections.images import LostImage, images_of, lost_image, names_of
from compress.report.views import Cell, Table, cells

HEAD = ("Images", "Against", "Drop, points", "Lost / gained", "p", "Its top\u20111", "The student's", "Number")
ARRAYS = ("slice_labels", "slice_student", "slice_margin", "slice_name")
LEAD = (
    "A small average drop can hide a large one on hard images. Shown are the images that the teacher is least sure of, "
    "by the lead of its first answer over its second, and single classes."
)


@dataclass(frozen=True)
class SlicesView:
    """The rows, and images behind them."""

    lead: str
    table: Table
    images: Sequence[LostImage]
    hidden: str = ""


def slices(source: Source) -> SlicesView | None:
    """Build the drops on slices and in the classes that got worse beyond chance; None where there are none."""
    rows = source.report.slices
    worse = [row for row in source.per_class if row.worse or row.float_worse]
    if not rows and not worse:
        return None
    teacher = teacher_row(source.report).file
    lines = [
        _line(row.slice or "", "teacher" if row.against == teacher else "float student", row.reference, row.top1, row)
        for row in rows
    ]
    lines += [_line(f"class {row.name}", "teacher", row.teacher, row.student, row) for row in worse if row.worse]
    lines += [
        _line(f"class {row.name}", "float student", row.float_top1, row.student, _against_float(row))
        for row in worse
        if row.float_worse
    ]
    parts = (LEAD, _classes_that_got_worse(source.per_class, worse), "p is from McNemar's exact test.")
    lead, table = " ".join(part for part in parts if part), Table("Slices", cells(*HEAD), lines)
    return SlicesView(lead, table, _images(source), source.hidden)


def _classes_that_got_worse(per_class: Sequence[ClassRow], worse: Sequence[ClassRow]) -> str:
    if all(row.worse is None for row in per_class):
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


def _line(
    name: str, against: str, reference: Number | None, own: Number | None, row: ClassRow | SliceRow
) -> list[Cell]:
    drop, p = row.drop_points, row.mcnemar_p
    return [
        Cell(name),
        Cell(against),
        Cell(signed(drop, 1).lstrip("+"), formats.interval(row.drop_ci95)) if is_number(drop) else Cell(),
        Cell(f"{row.lost} / {row.gained}"),
        Cell(chance(p).lstrip("= ") if is_number(p) else ""),
        Cell(percent(reference)),
        Cell(percent(own)),
        Cell(str(row.n)),
    ]


def _images(source: Source) -> list[LostImage]:
    """Build the images behind the rows, which the teacher gets right and the student wrong."""
    found = source.images
    if not set(ARRAYS) <= set(found):
        return []
    columns = (images_of(found, "slice_images"), *(found[key] for key in ARRAYS), names_of(found, "slice_names"))
    rows = zip(*columns, strict=True)
    return [
        lost_image(source, image, label, student, f"{group}; the teacher's lead {margin:.2f}", name)
        for image, label, student, margin, group, name in rows
    ]
