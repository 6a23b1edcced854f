"""Finds where a model is worse than its reference: in which classes, and on images of which the teacher is unsure.

An average hides both a class of few images and the hard images on which a compressed model flips first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.verdict import clusters
from compress.verdict.class_metrics import f1_of_classes
from compress.verdict.intervals import PairedDrop, holm, least_sure, mcnemar_exact, paired_drop, top_margin, wilson

# Slices of the test images, by the teacher's top-1 margin.
SHARES = {"least sure tenth": 0.1, "least sure quarter": 0.25}
# A class is called worse if its p, adjusted for the number of classes, is below this level.
WORSE_LEVEL = 0.05
# What the report shows: images of a slice, classes, mistakes.
SLICE_IMAGES_SHOWN = 8
CLASSES_SHOWN = 3
MISTAKES_SHOWN = 24

Logits = NDArray[np.floating]


@dataclass(frozen=True)
class Changes:
    """Where one model differs from the teacher: a row for each class and slice, and the arrays of pictures.npz."""

    per_class: tuple[dict[str, Any], ...]
    unsure: tuple[dict[str, Any], ...]
    images: dict[str, NDArray[Any]]


def changes(
    images: NDArray[np.uint8],
    labels: NDArray[np.integer],
    logits: Mapping[str, Logits],
    *,
    teacher: str,
    model: str,
    floats: str | None,
    classes: Sequence[str],
    groups: NDArray[np.int64] | None = None,
) -> Changes:
    """Compare the model that ships with the teacher.

    Args:
        images: all test images, uint8 (N, H, W, 3).
        labels: (N,).
        logits: file -> its logits (N, K).
        teacher: the teacher's file.
        model: the file that ships.
        floats: the float student's file where another one ships, else None.
        classes: names of the K classes.
        groups: group of each image, (N,); None: the images are independent.
    """
    before = logits[floats] if floats else None
    against = [teacher, *([floats] if floats else [])]
    rows = class_rows(labels, logits[teacher], logits[model], before, classes, groups)
    unsure = unsure_rows(labels, logits, teacher=teacher, model=model, against=against, groups=groups)
    shown = {
        **mistakes(images, labels, logits[teacher], logits[model]),
        **slice_images(images, labels, logits[teacher], logits[model], rows),
    }
    return Changes(rows, unsure, shown)


def mistakes(
    images: NDArray[np.uint8], labels: NDArray[np.integer], teacher: Logits, student: Logits
) -> dict[str, NDArray[Any]]:
    """Select images that the student gets wrong and the teacher right, the student's most confident mistakes first.

    Args:
        images: uint8 (N, H, W, 3).
        labels: (N,).
        teacher: logits (N, K).
        student: logits (N, K).

    Returns:
        Arrays of at most MISTAKES_SHOWN images, and `total`, how many such mistakes there are.
    """
    wrong = np.flatnonzero((teacher.argmax(axis=1) == labels) & (student.argmax(axis=1) != labels))
    gap = student[wrong].max(axis=1) - student[wrong, labels[wrong]]
    chosen = wrong[np.argsort(-gap, kind="stable")][:MISTAKES_SHOWN]
    return {
        "images": images[chosen],
        "labels": labels[chosen],
        "teacher": teacher[chosen].argmax(axis=1),
        "student": student[chosen].argmax(axis=1),
        "index": chosen,
        "total": np.array(len(wrong)),
    }


def drop_row(drop: PairedDrop) -> dict[str, Any]:
    """Return the keys that every paired comparison has; of grouped images also `groups`, and `p` of their test."""
    grouped = {} if drop.groups is None else {"groups": drop.groups, "p": drop.p}
    return {
        "n": drop.n,
        "lost": drop.lost,
        "gained": drop.gained,
        "drop_points": drop.drop_points,
        "drop_ci95": [drop.low, drop.high],
        "mcnemar_p": drop.p if drop.groups is None else mcnemar_exact(drop.lost, drop.gained),
        **grouped,
    }


def _compare(
    reference: NDArray[np.bool_], model: NDArray[np.bool_], groups: NDArray[np.int64] | None, chosen: NDArray[np.bool_]
) -> PairedDrop:
    """Compare two models on the chosen images. `reference`, `model`: whether they are right on those."""
    if groups is None:
        return paired_drop(reference, model)
    return clusters.paired_drop(reference, model, np.unique(groups[chosen], return_inverse=True)[1])


def unsure_rows(
    labels: NDArray[np.integer],
    logits: Mapping[str, Logits],
    *,
    teacher: str,
    model: str,
    against: Sequence[str],
    groups: NDArray[np.int64] | None = None,
) -> tuple[dict[str, Any], ...]:
    """Compare `model` with each reference on the images of which the teacher is least sure.

    The slices depend on logits alone, never on labels.

    Args:
        labels: (N,).
        logits: file -> its logits (N, K).
        teacher: the file whose margin defines the slices.
        model: the file that is judged.
        against: the references' files.
        groups: group of each image, (N,); None: the images are independent.

    Returns:
        One row for each slice and reference.
    """
    rows = []
    for name, share in SHARES.items():
        chosen = least_sure(logits[teacher], share)
        right = {file: logits[file][chosen].argmax(axis=1) == labels[chosen] for file in {model, *against}}
        margin = float(top_margin(logits[teacher])[chosen].max())
        for other in against:
            known = {"slice": name, "share": share, "margin_below": margin, "model": model, "against": other}
            shares = {"top1": float(right[model].mean()), "reference": float(right[other].mean())}
            rows.append({**known, **shares, **drop_row(_compare(right[other], right[model], groups, chosen))})
    return tuple(rows)


def class_rows(
    labels: NDArray[np.integer],
    teacher: Logits,
    model: Logits,
    floats: Logits | None,
    classes: Sequence[str],
    groups: NDArray[np.int64] | None = None,
) -> tuple[dict[str, Any], ...]:
    """Compare `model` with the teacher in each class, and with the float student where there is one.

    Args:
        labels: (N,).
        teacher: logits (N, K).
        model: logits (N, K).
        floats: the float student's logits (N, K), or None.
        classes: names of the K classes.
        groups: group of each image, (N,); None: the images are independent.

    Returns:
        One row for each class. `worse`: the drop is beyond chance after Holm's correction for the number of classes.
    """
    rows = [
        _class_row(labels == index, name, labels, teacher, model, floats, groups) for index, name in enumerate(classes)
    ]
    f1 = f1_of_classes(labels, model.argmax(axis=1), len(classes))
    rows = [{**row, "f1": float(value)} if row["n"] else row for row, value in zip(rows, f1, strict=True)]
    for key in ("", "float_"):
        tested = [row for row in rows if row.get(f"{key}mcnemar_p") is not None]
        for row, p in zip(
            tested, holm(np.array([row.get(f"{key}p", row[f"{key}mcnemar_p"]) for row in tested])), strict=True
        ):
            row[f"{key}worse"] = bool(p < WORSE_LEVEL and row[f"{key}lost"] > row[f"{key}gained"])
    return tuple(rows)


def _class_row(
    chosen: NDArray[np.bool_],
    name: str,
    labels: NDArray[np.integer],
    teacher: Logits,
    model: Logits,
    floats: Logits | None,
    groups: NDArray[np.int64] | None,
) -> dict[str, Any]:
    if not chosen.any():
        return {"class": name, "n": 0, "teacher": None, "student": None, "lost": 0, "gained": 0}
    own = model[chosen].argmax(axis=1) == labels[chosen]
    right = teacher[chosen].argmax(axis=1) == labels[chosen]
    row = {
        "class": name,
        "teacher": float(right.mean()),
        "student": float(own.mean()),
        "student_ci95": list(wilson(int(own.sum()), len(own))),
        "right": int(own.sum()),
        **drop_row(_compare(right, own, groups, chosen)),
    }
    if floats is not None:
        before = floats[chosen].argmax(axis=1) == labels[chosen]
        drop = drop_row(_compare(before, own, groups, chosen))
        row |= {"float": float(before.mean()), **{f"float_{key}": value for key, value in drop.items() if key != "n"}}
    return row


def slice_images(
    images: NDArray[np.uint8],
    labels: NDArray[np.integer],
    teacher: Logits,
    model: Logits,
    rows: Sequence[Mapping[str, Any]],
) -> dict[str, NDArray[Any]]:
    """Select images behind the rows: the teacher is right, the model wrong, its most confident mistakes first.

    Args:
        images: uint8 (N, H, W, 3).
        labels: (N,).
        teacher: logits (N, K).
        model: logits (N, K).
        rows: those of `class_rows`; the worst CLASSES_SHOWN of the worse classes are shown beside the least sure tenth.

    Returns:
        `slice_images` uint8 (M, H, W, 3), `slice_labels` and `slice_student` int (M,), `slice_margin` float (M,) and
        `slice_name` str (M,).
    """
    lost = (teacher.argmax(axis=1) == labels) & (model.argmax(axis=1) != labels)
    gap = model.max(axis=1) - model[np.arange(len(labels)), labels]
    groups = [(name, least_sure(teacher, SHARES[name])) for name in list(SHARES)[:1]]
    worse = sorted((row for row in rows if row.get("worse")), key=lambda row: -row["drop_points"])[:CLASSES_SHOWN]
    numbers = {row["class"]: index for index, row in enumerate(rows)}
    groups += [(f"class {row['class']}", labels == numbers[row["class"]]) for row in worse]
    index, names = [], []
    for name, chosen in groups:
        found = np.flatnonzero(lost & chosen)
        found = found[np.argsort(-gap[found], kind="stable")][:SLICE_IMAGES_SHOWN]
        index += found.tolist()
        names += [name] * len(found)
    taken = np.array(index, dtype=np.int64)
    return {
        "slice_images": images[taken],
        "slice_labels": labels[taken],
        "slice_student": model[taken].argmax(axis=1),
        "slice_margin": top_margin(teacher)[taken],
        "slice_name": np.array(names, dtype=np.str_),
    }
