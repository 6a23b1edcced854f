"""Hooks of the documentation site (mkdocs.yml): formulas drawn as SVG, and pages that show a top-level file.

Write a formula as a fenced block of the language `math`, in the part of TeX that matplotlib reads. GitHub renders such
a block itself. Here it becomes inline SVG, so a built page needs no script for it.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from matplotlib import path as paths
from matplotlib.textpath import TextPath

ROOT = Path(__file__).parents[1]
# A page of docs/ -> the file of the repository that it shows.
MIRRORED = {"contributing/index.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
_COMMANDS = {paths.Path.MOVETO: "M", paths.Path.LINETO: "L", paths.Path.CURVE3: "Q", paths.Path.CURVE4: "C"}
_MARGIN = 2


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Replace a mirror page's text by its file, and every formula by its SVG."""
    name = page.file.src_uri
    source = ROOT / MIRRORED.get(name, "")
    if source.is_file():
        markdown = relinked(source.read_text(encoding="utf-8"), depth=name.count("/"))
    return re.sub(r"^```math\n(.*?)^```$", lambda found: formula(found[1]), markdown, flags=re.MULTILINE | re.DOTALL)


def relinked(markdown: str, depth: int) -> str:
    """Return a top-level file's text with links as a page `depth` folders below docs/ has them.

    A link to a file that is no page of the site becomes its text alone.
    """
    pages = {source: page for page, source in MIRRORED.items()}

    def link(found: re.Match[str]) -> str:
        text, target = found[1], found[2]
        if target.startswith(("https://", "#")):
            return found[0]
        file, _, anchor = target.partition("#")
        page = file.removeprefix("docs/") if file.startswith("docs/") else pages.get(file)
        return f"[{text}]({'../' * depth}{page}{'#' * bool(anchor)}{anchor})" if page else text

    return re.sub(r"\[([^\]]+)\]\(([^)\s]+)\)", link, markdown)


def formula(tex: str) -> str:
    """Return the lines of a formula as one inline SVG in the text's colour."""
    lines = [line for line in tex.splitlines() if line.strip()]
    pieces, width, height = [], 0.0, 0.0
    for line in lines:
        outline = TextPath((0, 0), f"${line}$", size=17, usetex=False)
        box = outline.get_extents()
        pieces.append(f'<path transform="translate({_MARGIN},{height + _MARGIN + box.y1:.1f})" d="{_drawn(outline)}"/>')
        width, height = max(width, box.x1), height + box.height + 14
    label = html.escape("; ".join(lines), quote=True)
    size = f"{width + 2 * _MARGIN:.0f}", f"{height - 14 + 2 * _MARGIN:.0f}"
    return (
        f'<p><svg role="img" aria-label="{label}" width="{size[0]}" height="{size[1]}" '
        f'viewBox="0 0 {size[0]} {size[1]}" fill="currentColor">{"".join(pieces)}</svg></p>'
    )


def _drawn(outline: TextPath) -> str:
    """Return an outline as the `d` of an SVG path, y pointing down."""
    parts = []
    for points, code in outline.iter_segments(curves=True, simplify=False):
        if code == paths.Path.CLOSEPOLY:
            parts.append("Z")
            continue
        values = [f"{value if place % 2 == 0 else -value:.2f}" for place, value in enumerate(points)]
        parts.append(_COMMANDS[code] + " ".join(values))
    return "".join(parts)
