"""Small pieces of HTML. Whatever is not already `Html` is escaped, so no text of a user can become markup."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from compress.report.formats import is_number, significant

VOID = {"img", "br", "hr", "meta"}
# Characters that HTML forbids even when escaped, and halves of surrogate pairs, which UTF-8 cannot carry.
FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
# The hyphen in front of a number by itself; not that of a range, a date, a name, an option or an exponent.
MINUS = re.compile(r"(?<![^\s(\[])-(?=\d+(?:[.,]\d+)*(?![\w/-]|\.\w))")
VERBATIM = {"code", "pre"}


@dataclass(frozen=True)
class Html:
    """Markup that is already safe."""

    text: str


Child = Html | str | int | float | None | Iterable["Child"]

NOT_MEASURED = Html('<span class="none" title="not measured">&ndash;<span class="unseen"> not measured</span></span>')


def escape(text: object) -> str:
    """Text as HTML, in content and in attributes."""
    return html.escape(FORBIDDEN.sub("\ufffd", str(text)), quote=True)


def prose(text: object) -> str:
    """Text to be read, as HTML: report.json and the console stay ASCII, the page shows a true minus."""
    return escape(MINUS.sub("\u2212", str(text)))


def literal(text: object) -> Html:
    """A name, as it is."""
    return Html(escape(text))


def join(children: Child, between: str = "", write: Callable[[object], str] = prose) -> Html:
    """Children one after another; None is nothing. `write`: what makes HTML of a text."""
    if children is None:
        return Html("")
    if isinstance(children, Html):
        return children
    if isinstance(children, (str, int, float)):
        return Html(write(children))
    return Html(between.join(join(child, write=write).text for child in children))


def el(name: str, *children: Child, **attributes: object) -> Html:
    """An element. `class_` is class, `aria_label` is aria-label; an attribute that is None is left out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(children, write=escape if name in VERBATIM else prose).text}</{name}>")


def section(anchor: str, title: str, *children: Child, lead: Child = None) -> Html:
    """A titled part of the page."""
    intro = el("p", lead, class_="lead") if lead else None
    return el("section", el("h2", title), intro, *children, id=anchor, class_="card")


def table(
    caption: str,
    head: Sequence[Child],
    rows: Iterable[Sequence[Child]],
    kinds: Sequence[str] = (),
    *,
    stacked: bool = False,
) -> Html:
    """A table whose first cell of each row is its header; it scrolls sideways on a narrow screen. `kinds`: classes of the columns.

    `stacked`: on a narrow screen the header stands above its row, for tables of many columns.
    """

    def kind(column: int) -> str | None:
        return kinds[column] if column < len(kinds) and kinds[column] else None

    top = el("tr", *(el("th", cell, scope="col", class_=kind(column)) for column, cell in enumerate(head)))
    body = [
        el(
            "tr",
            el("th", row[0], scope="row"),
            *(el("td", cell, class_=kind(column)) for column, cell in enumerate(row[1:], start=1)),
        )
        for row in rows
    ]
    narrow = {"class_": "columns", "style": f"--columns:{len(head) - 1}"} if stacked else {}
    inner = el("table", el("caption", caption, class_="unseen"), el("thead", top), el("tbody", *body), **narrow)
    return el("div", inner, class_="scroll", tabindex="0", role="region", aria_label=caption)


def facts(pairs: Iterable[tuple[Child, Child]]) -> Html:
    """Names and values."""
    return el("dl", *(el("div", el("dt", name), el("dd", value)) for name, value in pairs))


def percent(share: Any, digits: int = 1) -> Child:
    return f"{100 * share:.{digits}f} %" if is_number(share) else NOT_MEASURED


def milliseconds(value: Any) -> Child:
    return f"{significant(value)} ms" if is_number(value) else NOT_MEASURED


def size(value: Any) -> Child:
    """Bytes in decimal units."""
    if not is_number(value):
        return NOT_MEASURED
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= scale:
            return f"{significant(value / scale)} {unit}"
    return f"{value:.0f} bytes"


def count(value: Any) -> Child:
    """A large count, shortened."""
    if not is_number(value):
        return NOT_MEASURED
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if abs(value) >= scale:
            return f"{significant(value / (scale if unit != 'k' else 1e3))} {unit}"
    return f"{value:,.0f}"


def duration(seconds: Any) -> Child:
    if not is_number(seconds):
        return NOT_MEASURED
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.1f} s"


def bracket(interval: tuple[float, float] | None, scale: float = 1.0, digits: int = 1) -> Child:
    """A small [low, high]."""
    if interval is None:
        return None
    text = f"[{scale * interval[0]:.{digits}f}, {scale * interval[1]:.{digits}f}]"
    return el("span", text, class_="interval")


def bar(
    value: float, interval: tuple[float, float] | None, limit: float, *, at_most: bool, mark: str, alt: str, tone: str
) -> Html:
    """Value and interval against a limit; the side that meets it is shaded. Drawn by CSS, so it fits every width."""
    points = [value, limit, *(interval or ())]
    pad = (max(points) - min(points) or abs(limit) or 1.0) * 0.15
    low, high = min(points) - pad, max(points) + pad

    def at(x: float) -> float:
        return round(100 * (x - low) / (high - low), 2)

    tick = at(limit)
    zone = f"left:0;width:{tick}%" if at_most else f"left:{tick}%;right:0"
    span = None
    if interval is not None:
        span = el(
            "span", class_="span", style=f"left:{at(interval[0])}%;width:{round(at(interval[1]) - at(interval[0]), 2)}%"
        )
    label = el("span", mark, class_="mark", style=f"left:{tick}%;transform:translateX(-{tick}%)")
    track = el(
        "span",
        el("span", class_="zone", style=zone),
        span,
        el("span", class_="tick", style=f"left:{tick}%"),
        el("span", class_="dot", style=f"left:{at(value)}%"),
        class_="track",
    )
    return el("div", track, label, class_=f"bar {tone}", role="img", aria_label=alt)
