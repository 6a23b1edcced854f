"""The three ways through the code in the architecture page: every row exists, and none is longer than it should be."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "contributing" / "architecture.md").read_text(encoding="utf-8")
MOST_HOPS = {"From the command line": 10, "From `distill.temperature`": 10, "From a test image": 13}


def rows(title: str) -> list[tuple[str, str]]:
    """Return (file, function) of the rows below the heading that begins with `title`."""
    section = PAGE.split(f"### {title}", 1)[1].split("\n#", 1)[0]
    return re.findall(r"^\| `([^`]+)` \| `?([^`|]*?)`? \|", section, re.MULTILINE)


def defined(path: Path) -> set[str]:
    """Return the names of a module's classes and functions, methods as Class.method."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
    return found


@pytest.mark.parametrize("title", MOST_HOPS)
def test_every_hop_exists_and_there_are_few(title: str) -> None:
    way = rows(title)
    assert 8 <= len(way) - 1 <= MOST_HOPS[title]
    assert [(file, name) for file, name in way if name and name not in defined(ROOT / file)] == []
    assert all((ROOT / file).is_file() for file, _ in way)
