"""The plots of `compress analyze` as SVG: gradients, correlations, features, calibration, runs side by side."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from compress.report import plots
from compress.report.plots import CLASSES, COLOURS, INK, MUTED, finish, marker, panel, plain, svg_of
from compress.report.read import Source
from compress.report.schema import AnalysisSection

NAMES = (
    "gradients",
    "correlation",
    "correlation-auxiliary",
    "features-teacher",
    "features-student",
    "calibration",
    "against-accuracy",
    "against-loss",
    "against-gradients",
)
SHAPES = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
# Colours of the runs side by side.
RUNS = ("student", "teacher", "baseline", "float", "other")
DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1, 1.3)))
# Of more classes the matrix is a bitmap in the drawing, and its classes are not named.
MOST_CELLS = 20
MATRICES = {"float student": "correlation", "auxiliary head": "correlation-auxiliary"}
PARTS = {"cos_classifier": "classifier", "cos_backbone": "backbone"}


def draw(source: Source) -> dict[str, str]:
    """Return every plot that the analysis allows, by name; none without an analysis."""
    analysis = source.report.analysis
    if analysis is None:
        return {}
    with matplotlib.rc_context(plots.STYLE):
        figures = {
            "gradients": _gradients(source),
            "calibration": _calibration(source, analysis),
            **_correlations(source, analysis),
        }
        figures |= {f"features-{role}": _features(source, analysis, role) for role in ("teacher", "student")}
        figures |= _against(source, analysis)
        return {name: svg_of(figure) for name, figure in figures.items() if figure is not None}


def _gradients(source: Source) -> Figure | None:
    """Draw the cosine between the two losses' gradients against epochs, one line per part of the student."""
    student = next((curve for curve in source.curves if curve.name == "student"), None)
    if student is None or not student.cosines:
        return None
    figure, axes = panel(3.0)
    classifier, backbone = (
        {"color": COLOURS["student"], "linewidth": 2.2},
        {"color": COLOURS["teacher"], "linewidth": 1.8, "linestyle": (0, (5, 2))},
    )
    looks: dict[str, dict[str, Any]] = {"cos_classifier": classifier, "cos_backbone": backbone}
    for name, values in student.cosines.items():
        axes.plot(
            student.epoch,
            values,
            label=PARTS.get(name, name),
            marker=marker(student.epoch),
            markersize=4,
            **looks.get(name, {}),
        )
    _signed(axes, list(student.cosines.values()))
    finish(figure, axes, "Cosine of the two losses' gradients")
    return figure


def _signed(axes: Axes, curves: list[NDArray[np.float64]]) -> None:
    """Set up an axis of cosines: draw zero and shade what lies below it."""
    values = np.concatenate(curves)
    low, high = min(-0.25, float(np.nanmin(values)) - 0.1), max(0.5, float(np.nanmax(values)) + 0.1)
    axes.set_ylim(max(low, -1.05), min(high, 1.05))
    axes.axhline(0.0, color=INK, linewidth=1.0, zorder=1)
    axes.axhspan(-2.0, 0.0, color=MUTED, alpha=0.1, linewidth=0, zorder=0)
    axes.text(
        0.99,
        0.02,
        "below 0 the losses oppose each other",
        transform=axes.transAxes,
        ha="right",
        fontsize=9,
        color=MUTED,
    )


def _correlations(source: Source, analysis: AnalysisSection) -> dict[str, Figure | None]:
    """Draw the differences for the float student and for DHKD's auxiliary head, on one colour scale."""
    rows = [*analysis.correlations, *analysis.heads]
    found = {
        MATRICES[row.what]: (row.what, source.analysis[f"correlation_{number}"])
        for number, row in enumerate(rows)
        if row.what in MATRICES
    }
    top = max((float(np.abs(matrix).max()) for _, matrix in found.values()), default=0.0)
    classes = source.report.classes
    return {
        name: _matrix(matrix, max(top, 0.01), f"{what.capitalize()} minus teacher", classes)
        for name, (what, matrix) in found.items()
    }


def _matrix(matrix: NDArray[np.float64], top: float, title: str, classes: list[str]) -> Figure:
    """Draw differences (K, K): one colour for more, one for less, the stronger the larger."""
    figure, axes = panel(4.3)
    count = len(matrix)
    if count <= MOST_CELLS:
        for row, column in np.ndindex(matrix.shape):
            _cell(axes, column, row, float(matrix[row, column]) / top)
            if count <= 10:
                text = (
                    f"{matrix[row, column]:+.2f}".replace("+0.00", "0")
                    .replace("-0.00", "0")
                    .replace("0.", ".")
                    .replace("-", "\u2212")
                )
                axes.text(column, row, text, ha="center", va="center", fontsize=7)
        labels = [_short(classes[index] if index < len(classes) else str(index)) for index in range(count)]
        axes.set_xticks(range(count), labels, rotation=90, fontsize=8.5)
        axes.set_yticks(range(count), labels, fontsize=8.5)
    else:
        axes.imshow(_shades(matrix / top), interpolation="none")
    axes.set_xlim(-0.5, count - 0.5)
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.grid(False)
    axes.tick_params(length=0)
    _scale(figure, axes, top)
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    return figure


def _cell(axes: Axes, x: float, y: float, value: float, width: float = 1.0, height: float = 1.0) -> None:
    """Draw a rectangle around (x, y), shaded by a value in [-1, 1]."""
    colour = COLOURS["student" if value > 0 else "teacher"]
    axes.add_patch(
        Rectangle(
            (x - width / 2, y - height / 2),
            width,
            height,
            facecolor=colour,
            alpha=round(min(abs(value), 1.0), 3),
            linewidth=0,
        )
    )


def _shades(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return colours (K, K, 4), RGBA, of values (K, K) in [-1, 1]; those near zero are transparent."""
    colours = np.array(
        [[int(COLOURS[name][at : at + 2], 16) / 255 for at in (1, 3, 5)] for name in ("teacher", "student")]
    )
    return np.concatenate([colours[(values > 0).astype(int)], np.abs(values).clip(0, 1)[..., None]], axis=2)


def _scale(figure: Figure, axes: Axes, top: float) -> None:
    """Draw the scale of the shades beside the matrix."""
    bar = axes.inset_axes((1.03, 0.0, 0.035, 1.0))
    for value in np.linspace(-1, 1, 41):
        _cell(bar, 0.5, value, value, 1.0, 0.05)
    bar.set_xlim(0, 1)
    bar.set_ylim(-1.025, 1.025)
    bar.set_xticks([])
    bar.yaxis.tick_right()
    bar.set_yticks([-1, 0, 1], [f"\u2212{top:.2f}", "0", f"+{top:.2f}"], fontsize=8.5)
    bar.tick_params(length=0)
    bar.grid(False)
    for side in bar.spines.values():
        side.set_visible(False)


def _short(name: str) -> str:
    return plain(name) if len(name) <= 13 else plain(name[:11]) + "..."


def _features(source: Source, analysis: AnalysisSection, role: str) -> Figure | None:
    """Draw one network's t-SNE: a point per image, a colour and a shape per class."""
    points, labels = source.analysis.get(f"features_{role}"), source.analysis.get("features_labels")
    network = next((row for row in analysis.features.networks if row.role == role), None)
    if points is None or labels is None or network is None:
        return None
    figure, axes = panel(4.0)
    for number, name in enumerate(analysis.features.classes):
        x, y = points[labels == number].T.round(2)
        axes.scatter(
            x,
            y,
            s=11,
            marker=SHAPES[number % 10],
            color=CLASSES[number % 10],
            alpha=0.75,
            linewidths=0,
            label=_short(str(name)),
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    axes.margins(0.03)
    for side in axes.spines.values():
        side.set_visible(False)
    finish(figure, axes, plain(f"{role.capitalize()}: {network.model}"), axis=None, markers=2.0)
    return figure


def _calibration(source: Source, analysis: AnalysisSection) -> Figure | None:
    """Draw accuracy against confidence, a line per file; larger marks stand for more images."""
    rows = analysis.calibration
    if not rows:
        return None
    figure, axes = panel(3.5)
    axes.plot([0, 100], [0, 100], color=MUTED, linewidth=1.0, linestyle=(0, (2, 2)))
    looks = {
        "teacher": ("teacher", (0, (1, 1.2)), "o"),
        "float student": ("float", (0, (5, 2)), "s"),
        "int8 student": ("student", "solid", "D"),
    }
    for number, row in enumerate(rows):
        images, confidence, accuracy = (
            source.analysis[f"calibration_{number}_{name}"] for name in ("pictures", "confidence", "accuracy")
        )
        colour, dash, shape = looks[row.what]
        some = images > 0
        axes.plot(
            100 * confidence[some],
            100 * accuracy[some],
            color=COLOURS[colour],
            linestyle=dash,
            linewidth=1.6,
            label=row.what,
        )
        sizes = 6 + 130 * images[some] / images.sum()
        axes.scatter(
            100 * confidence[some],
            100 * accuracy[some],
            s=sizes,
            marker=shape,
            color=COLOURS[colour],
            alpha=0.8,
            linewidths=0,
        )
    axes.set_xlim(0, 103)
    axes.set_ylim(0, 103)
    finish(figure, axes, "Accuracy against confidence, %", axis="confidence, %")
    return figure


def _against(source: Source, analysis: AnalysisSection) -> dict[str, Figure | None]:
    """Draw validation accuracy, task loss and cosines of several runs in the same axes."""
    rows, arrays = analysis.against, source.analysis
    if not rows:
        return {}
    names = [
        row.recipe if [one.recipe for one in rows].count(row.recipe) == 1 else f"{row.recipe} {row.run[:16]}"
        for row in rows
    ]
    shown = {
        "against-accuracy": (("top1",), 100.0, "Top-1 on validation, %"),
        "against-loss": (("task",), 1.0, "Cross-entropy in training"),
        "against-gradients": (tuple(PARTS), 1.0, "Cosine of the two losses' gradients"),
    }
    figures: dict[str, Figure | None] = {}
    for title, (keys, scale, heading) in shown.items():
        figure, axes = panel(3.0)
        drawn = []
        for number, name in enumerate(names):
            for place, key in enumerate(keys):
                values = arrays.get(f"against_{number}_{key}")
                if values is None or not np.isfinite(values).any():
                    continue
                epoch, label = arrays[f"against_{number}_epoch"], f"{name}, {PARTS[key]}" if key in PARTS else name
                axes.plot(
                    epoch,
                    scale * values,
                    label=plain(label),
                    color=COLOURS[RUNS[number % 5]],
                    linestyle=DASHES[place if len(keys) > 1 else number % 3],
                    linewidth=1.9,
                    marker=marker(epoch),
                    markersize=4,
                )
                drawn.append(values)
        if drawn and title == "against-gradients":
            _signed(axes, drawn)
        if drawn:
            finish(figure, axes, heading)
        figures[title] = figure if drawn else None
    return figures
