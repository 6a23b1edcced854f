"""No message and no page tells anyone to install this project from an index: the name there is another project's."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMAND = re.compile(r"(?:pip3?|uv|uv add|pipx)\s+install\s+([^`\n]*)")
NAME = re.compile(r"(?<![\w/.-])[\"']?compress(?:\[|[\"'\s=<>~!]|$)")


def hints() -> list[tuple[str, str]]:
    """Return (file, what is to be installed) for every install command in code, pages and workflows."""
    files = [path for folder in ("compress", "export", "docs", ".github") for path in (ROOT / folder).rglob("*")]
    files += [*ROOT.glob("*.md"), *ROOT.glob("*.toml"), ROOT / "Makefile"]
    texts = [path for path in files if path.suffix in (".py", ".md", ".html", ".js", ".yml", ".toml", "")]
    return [
        (path.relative_to(ROOT).as_posix(), found)
        for path in texts
        if path.is_file()
        for found in COMMAND.findall(path.read_text(encoding="utf-8"))
    ]


def test_no_install_command_names_the_project_itself() -> None:
    found = hints()
    assert len(found) >= 5
    assert not [hint for hint in found if NAME.search(hint[1])]


def test_the_pattern_sees_what_it_is_for() -> None:
    wrong = ('"compress[analyze]"`', "compress", "'compress[timm]'", "-q compress==0.2.0")
    right = ("-e .", "scikit-learn", "'timm>=1.0'", "--force-reinstall .", "./dist/compress-0.2.0-py3-none-any.whl")
    assert all(NAME.search(text) for text in wrong) and not any(NAME.search(text) for text in right)
