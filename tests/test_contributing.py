"""The worked example of CONTRIBUTING.md: the change applies, and the method that it adds keeps the contract."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from compress import __version__

ROOT = Path(__file__).parents[1]


@pytest.fixture
def changed(tmp_path: Path) -> Path:
    """Return a copy of the packages and of the methods' tests with the example's change applied."""
    for folder in ("compress", "export", "docs/explanation", "tests/methods", "tests/support"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("tests/conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / file, tmp_path / file)
    (change,) = re.findall(r"```diff\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    # A Markdown file has no trailing blanks: an unchanged empty line of the diff has lost its single one.
    change = re.sub(r"^$", " ", change.rstrip("\n"), flags=re.MULTILINE) + "\n"
    done = subprocess.run(
        ["git", "apply", "--unidiff-zero", "-"], cwd=tmp_path, input=change, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return tmp_path


@pytest.mark.slow
def test_the_example_adds_a_method_that_keeps_the_contract(changed: Path) -> None:
    added = [
        line for line in re.findall(r"^\+(?!\+)(.*)", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE) if line
    ]
    assert len(added) <= 40
    tests = ("tests/methods/test_contract.py", "tests/methods/test_tables.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, "-k", "l2 or every_table"],
        cwd=changed,
        env={**os.environ, "PYTHONPATH": str(changed), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0 and re.search(r"\b([5-9]|\d\d+) passed", done.stdout), done.stdout + done.stderr


def test_the_citation_names_this_version_and_the_paper() -> None:
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert found["version"] == __version__ and found["cff-version"] == "1.2.0"
    (paper,) = found["references"]
    assert len(paper["authors"]) == 5 and paper["identifiers"][0]["value"] == "arXiv:2411.08937"


def test_the_changelog_opens_with_this_version_and_keeps_to_one_line_an_entry() -> None:
    lines = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    assert next(line for line in lines if line.startswith("## ")).startswith(f"## {__version__}")
    first = next(place for place, line in enumerate(lines) if line.startswith("## "))
    assert all(line.startswith(("#", "- ", "The first")) for line in lines[first:] if line)
    assert max(map(len, lines)) <= 100
