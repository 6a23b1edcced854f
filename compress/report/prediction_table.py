"""predictions.csv: for each test image its path, its class, and what every model answers, for people and spreadsheets.

The logits behind it are in predictions.npz, in the same order.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.core.files import write_atomically

NAME = "predictions.csv"
# A spreadsheet takes a cell that begins so for a formula.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
SUM_TOLERANCE = 5e-3  # of probabilities in half precision


def write(
    path: Path,
    labels: NDArray[np.integer[Any]],
    logits: Mapping[str, NDArray[np.floating[Any]]],
    classes: Sequence[str],
    names: Sequence[str] | None,
    foreign: frozenset[str] = frozenset(),
) -> None:
    """Write one row a test image.

    Args:
        path: The file.
        labels: The right classes, (N,).
        logits: By file name of the model, (N, K) each; the columns come in this order.
        classes: Names of the classes.
        names: Paths of the images relative to `data.root`, with `/`; None: their numbers, from 0, stand in this column.
        foreign: Which of the models are another project's files.
    """
    shown = [as_text(name) for name in classes]
    columns: list[Sequence[str | float]] = [
        range(len(labels)) if names is None else [as_path(name) for name in names],
        [shown[label] for label in labels],
    ]
    header = ["path", "label"]
    for file, values in logits.items():
        answers = values.argmax(axis=1)
        shares = probabilities(values, foreign=file in foreign)[np.arange(len(labels)), answers]
        columns += [[shown[answer] for answer in answers], [round(float(share), 6) for share in shares]]
        header += [f"{file} answer", f"{file} probability"]
    stream = io.StringIO(newline="")
    # Text is quoted, so that a semicolon in a path starts no cell where spreadsheets separate by semicolons.
    writer = csv.writer(stream, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(zip(*columns, strict=True))
    # A file name that is no UTF-8 has half surrogates, which UTF-8 cannot carry.
    write_atomically(path, stream.getvalue().encode("utf-8", "backslashreplace"))


def probabilities(values: NDArray[np.floating[Any]], *, foreign: bool) -> NDArray[np.float64]:
    """Return what a model gives each class: the softmax of its logits, or its answers where they are probabilities.

    Args:
        values: The model's answers (N, K).
        foreign: Whether it is another project's file. Such a file may end in a sigmoid for each class, whose answers
            are taken as they are; its Softmax was made logits when it was read.
    """
    wide = values.astype(np.float64)
    between = bool(len(wide)) and bool(wide.min() >= -1e-6) and bool(wide.max() <= 1 + SUM_TOLERANCE)
    ends_in_softmax = between and bool(np.abs(wide.sum(axis=1) - 1).max() <= SUM_TOLERANCE)
    if ends_in_softmax or (foreign and between and bool(wide.std() > 0)):
        return np.clip(wide, 0.0, 1.0)
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def as_path(name: str) -> str:
    """Return a path that no spreadsheet takes for a formula and that still leads to the file."""
    return f"./{name}" if name.startswith(FORMULA_STARTS) else name


def as_text(name: str) -> str:
    """Return a class name that no spreadsheet takes for a formula: an apostrophe in front; a number stays as it is."""
    try:
        float(name)
    except ValueError:
        return f"'{name}" if name.startswith(FORMULA_STARTS) else name
    return name
