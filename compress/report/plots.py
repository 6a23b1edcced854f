"""The report's plots as SVG, drawn with matplotlib's object interface: no display, no global figure.

Each drawing is used twice: as `plots/<name>.svg` with fixed colours on white, and inside the page, where colours become
CSS variables that follow light and dark mode. Colours are those of Okabe and Ito (2008); line styles differ as well.
Text stays text: small, selectable, and the same bytes whatever fonts are installed.
"""

from __future__ import annotations

import io
import re
import warnings
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from compress.report.read import Source, measured_rows, model_label, shipped
from compress.report.schema import ModelRow, Report

INK, MUTED, GRID = "#1d2126", "#5b636e", "#dfddd8"
# Light-mode colours by meaning; report.css holds both modes under the same names.
COLOURS = {"teacher": "#0072b2", "student": "#c84e00", "float": "#a8578a", "baseline": "#00805e", "other": "#77736b"}
# Up to ten classes in one plot; their shapes differ as well.
CLASSES = ("#1f6fb4", "#e07b00", "#2f8f4e", "#c23b3b", "#8055a8", "#8a5a3c", "#d25fa6", "#5f6b73", "#8f8f00", "#1393a5")
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    **{value: f"--c-{name}" for name, value in COLOURS.items()},
    **{value: f"--k-{number}" for number, value in enumerate(CLASSES)},
}

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.parse_math": False,
    "axes.facecolor": "none",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "path.simplify": False,
}


def draw(source: Source) -> dict[str, str]:
    """Return every plot that the data allow, by name: standalone SVG documents, light colours on white."""
    with matplotlib.rc_context(STYLE):
        figures = {"accuracy": _accuracy(source), "loss": _loss(source), "latency": _latency(source)}
        return {name: svg_of(figure) for name, figure in figures.items() if figure is not None}


def inline(svg: str, name: str, alt: str) -> str:
    """Return a drawing for the page: the svg element alone, with themed colours and ids of its own.

    Args:
        svg: a document of `svg_of`.
        name: stands in front of every id.
        alt: the alternative text, already escaped.
    """
    body = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    view = re.search(r'viewBox="[^"]*"', body)
    opening = f'<svg {view.group(0) if view else ""} role="img" aria-label="{alt}">'
    _, rest = body.split(">", 1)
    # Only tags change: a text may look like an id or a colour.
    return opening + re.sub(r"<[^>]*>", lambda tag: _themed(tag.group(0), name), rest).strip()


def _themed(tag: str, name: str) -> str:
    """Return a tag with ids of its own, and CSS variables in place of colours."""
    tag = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", tag).replace("xlink:href", "href")
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = re.sub(r'(url\(|href=")#', rf"\1#{name}-", tag)
    for colour, variable in VARIABLES.items():
        tag = tag.replace(colour, f"var({variable})")
    return tag


def svg_of(figure: Figure) -> str:
    """Return a figure as a standalone SVG document."""
    stream = io.BytesIO()
    FigureCanvasSVG(figure)
    with warnings.catch_warnings():
        # Letters that matplotlib's own font lacks are no problem: texts stay texts.
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(stream, format="svg", facecolor="none", metadata={"Date": None, "Creator": None})
    text = stream.getvalue().decode()
    # A background of its own for the file on its own; in the page the card is the background.
    return re.sub(r"(<svg[^>]*?)>", r'\1 style="background: white">', text, count=1)


def panel(height: float) -> tuple[Figure, Axes]:
    """Return a figure with one panel, narrow enough that its text is readable on a phone. `height` in inches."""
    figure = Figure(figsize=(4.7, height), layout="constrained")
    return figure, figure.add_subplot()


def plain(label: str) -> str:
    """Return a label that an SVG may hold and the panel has room for: printable and at most 36 letters."""
    # matplotlib hides labels with a leading underscore.
    text = "".join(letter if letter.isprintable() else "?" for letter in label).lstrip("_")
    return (text or "?") if len(text) <= 36 else text[:33] + "..."


def _hue(name: str, source: Source) -> dict[str, Any]:
    """Return colour and line style of a training run."""
    if name == "student":
        return {"color": COLOURS["student"], "linewidth": 2.2}
    if name == "baseline":
        return {"color": COLOURS["baseline"], "linewidth": 2.0, "linestyle": (0, (5, 2))}
    if name == (source.report.teacher.model or "").replace("/", "-"):
        return {"color": COLOURS["teacher"], "linewidth": 1.6, "linestyle": (0, (1, 1.2))}
    return {"color": COLOURS["other"], "linewidth": 1.2, "linestyle": (0, (3, 1.5, 1, 1.5))}


def finish(
    figure: Figure, axes: Axes, title: str, order: int = 1, axis: str | None = "epoch", markers: float = 1.0
) -> None:
    """Add the title, the name of the x axis, and a legend below it.

    Args:
        figure: grows by the legend's height.
        axes: the panel.
        title: the title.
        order: -1 reverses the legend.
        axis: name of the x axis; `epoch` gets whole numbers.
        markers: scale of the markers in the legend.
    """
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(axis or "")
    if axis == "epoch":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    handles, labels = axes.get_legend_handles_labels()
    columns = 2 if max(map(len, labels)) <= 20 else 1
    # The legend takes no height from the curves.
    figure.set_figheight(figure.get_figheight() + 0.19 * -(-len(labels) // columns))
    figure.legend(
        handles[::order],
        labels[::order],
        loc="outside lower left",
        ncols=columns,
        frameon=False,
        fontsize=9.5,
        handlelength=2.6,
        markerscale=markers,
    )


def _accuracy(source: Source) -> Figure | None:
    """Draw top-1 on validation against epochs, in percent."""
    curves = [curve for curve in source.curves if curve.top1 is not None and np.isfinite(curve.top1).any()]
    if not curves:
        return None
    figure, axes = panel(3.0)
    # The student is drawn last, on top.
    for curve in reversed(curves):
        assert curve.top1 is not None
        axes.plot(
            curve.epoch,
            100 * curve.top1,
            label=plain(curve.name),
            marker=marker(curve.epoch),
            markersize=4,
            **_hue(curve.name, source),
        )
    finish(figure, axes, "Top-1 on validation, %", order=-1)
    return figure


def marker(epoch: NDArray[np.float64]) -> str:
    """Return the marker of a curve: a single epoch would show no line."""
    return "o" if len(epoch) == 1 else ""


def _loss(source: Source) -> Figure | None:
    """Draw the training losses of student and baseline against epochs, the task loss with a strong line."""
    curves = [curve for curve in source.curves if curve.name in ("student", "baseline") and curve.losses]
    if not curves:
        return None
    figure, axes = panel(3.0)
    values = []
    for curve in curves:
        hue = _hue(curve.name, source)
        for place, (loss, series) in enumerate(curve.losses.items()):
            line = hue if place == 0 else {**hue, "linewidth": 1.3, "linestyle": (0, (1, 1.5)), "alpha": 0.9}
            axes.plot(
                curve.epoch,
                series,
                label=plain(f"{curve.name} {loss}"),
                marker=marker(curve.epoch),
                markersize=4,
                **line,
            )
            values.append(series[np.isfinite(series) & (series > 0)])
    every = np.concatenate(values)
    if every.size and every.max() / every.min() > 50:
        axes.set_yscale("log")
        _decades(axes.yaxis)
    finish(figure, axes, "Training loss" + (" (log)" if axes.get_yscale() == "log" else ""))
    return figure


def _decades(axis: Axis) -> None:
    """Label a logarithmic axis at 1, 2 and 5 of each decade with plain numbers.

    matplotlib's own labels are mathematical markup, which would stay text here.
    """
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _latency_rows(source: Source) -> list[tuple[str, str, NDArray[np.float64]]]:
    """Return (label, colour, samples in ms) of each timed file, in the order of the table, then the others."""
    report = source.report
    rows = measured_rows(report)
    labels = {row.file: (model_label(row), _role_colour(row, report)) for row in rows}
    order = [name for name in labels if name in source.latency] + [
        name for name in source.latency if name not in labels
    ]
    found = [(*labels.get(name, (name, COLOURS["other"])), source.latency[name]) for name in order]
    return [(label, colour, samples) for label, colour, samples in found if samples.size]


def _role_colour(row: ModelRow, report: Report) -> str:
    if row.role == "student":
        return COLOURS["student" if row is shipped(report) else "float"]
    return COLOURS.get(row.role or "", COLOURS["other"])


def _latency(source: Source) -> Figure | None:
    """Draw the density of raw samples of each file on a common axis; the line is the median."""
    rows = _latency_rows(source)
    if not rows:
        return None
    samples = [values for _, _, values in rows]
    medians = [float(np.median(values)) for values in samples]
    top = max(float(np.quantile(values, 0.995)) for values in samples)
    wide = max(medians) / max(min(medians), 1e-9) > 12
    low = 0.8 * min(float(values.min()) for values in samples) if wide else 0.0
    edges = np.geomspace(low, top * 1.05, 141) if wide else np.linspace(0.0, top * 1.05, 141)
    figure, axes = panel(0.9 + 0.72 * len(rows))
    for place, ((label, colour, values), median) in enumerate(zip(rows, medians, strict=True)):
        _ridge(axes, len(rows) - 1 - place, values, edges, colour)
        axes.text(
            0.0,
            len(rows) - 1 - place + 0.72,
            f"{plain(label)}: {median:.3g} ms",
            transform=axes.get_yaxis_transform(),
            fontsize=10,
        )
    if wide:
        axes.set_xscale("log")
        _decades(axes.xaxis)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(-0.08, len(rows) + 0.05)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(True, axis="x")
    axes.set_title("Latency of one image, ms" + (" (log)" if wide else ""), loc="left", fontsize=11, fontweight="bold")
    return figure


def _ridge(axes: Axes, base: float, values: NDArray[np.float64], edges: NDArray[np.float64], colour: str) -> None:
    """Draw a histogram that stands on `base`, with a line at the median."""
    counts, _ = np.histogram(values, edges)
    height = 0.6 * counts / max(counts.max(), 1)
    axes.stairs(base + height, edges, baseline=base, fill=True, color=colour, alpha=0.35, linewidth=0)
    axes.stairs(base + height, edges, baseline=base, color=colour, linewidth=1.2)
    median = float(np.median(values))
    axes.plot([median, median], [base - 0.05, base + 0.62], color=colour, linewidth=2.2)
