"""Plain values that the templates show: tables, cells, bars and drawings. Numbers are text here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from compress.report import plots
from compress.report.schema.base import Interval, Number


@dataclass(frozen=True)
class Cell:
    """A value of a table or a list. `text` None: not measured."""

    text: str | None = ""
    # Small print: `[low, high]`, and further lines.
    interval: str = ""
    small: tuple[str, ...] = ()
    # A label behind the text, such as a check mark for the chosen row.
    chip: str = ""
    quiet: str = ""
    # The exponent where the text is the mantissa of a power of ten.
    power: int | None = None
    # Names and checksums keep their hyphens; `title` is shown on hover.
    code: bool = False
    title: str = ""
    css: str = ""


@dataclass(frozen=True)
class Table:
    """A table whose first cell of each row is its header.

    `kinds`: CSS class of each column. `stacked`: on a narrow screen the header stands above its row.
    """

    caption: str
    head: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]
    kinds: Sequence[str] = ()
    stacked: bool = False


@dataclass(frozen=True)
class Drawing:
    """One of our own plots, for the page."""

    svg: Markup
    caption: str = ""


@dataclass(frozen=True)
class LimitBar:
    """A value with its interval against a limit, as positions in percent of the width."""

    tone: str
    alt: str
    mark: str
    zone: str
    tick: float
    dot: float
    span: tuple[float, float] | None = None


def cells(*values: str | None) -> list[Cell]:
    """Return plain cells; None is shown as not measured."""
    return [Cell(value) for value in values]


def drawing(drawn: Mapping[str, str], name: str, alt: str, caption: str = "") -> Drawing | None:
    """Return a plot for the page; None where it was not drawn.

    Args:
        drawn: SVG documents by name.
        name: the plot's name.
        alt: the alternative text.
        caption: what stands below it.
    """
    if name not in drawn:
        return None
    return Drawing(Markup(plots.inline(drawn[name], name, str(escape(alt)))), caption)


def limit_bar(
    value: Number, interval: Interval | None, limit: Number, *, at_most: bool, mark: str, alt: str, tone: str
) -> LimitBar:
    """Place a value and its interval against a limit; the side that meets the limit is shaded.

    Args:
        value: the measured value.
        interval: its 95 % confidence interval; None where it is exact.
        limit: the limit, in the same unit.
        at_most: whether values below the limit meet it.
        mark: the label of the limit.
        alt: the alternative text.
        tone: CSS class of the colour.
    """
    points = [value, limit, *(interval or ())]
    pad = (max(points) - min(points) or abs(limit) or 1.0) * 0.15
    low, high = min(points) - pad, max(points) + pad

    def at(x: Number) -> float:
        return float(round(100 * (x - low) / (high - low), 2))

    tick = at(limit)
    zone = f"left:0;width:{tick}%" if at_most else f"left:{tick}%;right:0"
    span = (at(interval[0]), round(at(interval[1]) - at(interval[0]), 2)) if interval is not None else None
    return LimitBar(tone=tone, alt=alt, mark=mark, zone=zone, tick=tick, dot=at(value), span=span)
