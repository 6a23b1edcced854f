"""Stored results name the command and the machine that made them, or are listed as exceptions."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import click
import pytest

ROOT = Path(__file__).parents[2]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
PAGE = (ROOT / "docs" / "benchmarks" / "index.md").read_text(encoding="utf-8")
# Files that are not exactly what their script wrote.
EXCEPTIONS = {
    "qat.json": "an older form: several runs in one file, one of them stopped and noted by hand",
    "sharing-cuda.json": "put together from the lines of many commands",
    "reproduce-*.json": "completed by hand after an interruption, as their notes say",
    "methods-mobilenet.json": "the variable in front of its command was written in by hand",
}


def wrong(content: dict[str, Any]) -> list[str]:
    """What keeps a result from being one that its script wrote: an empty list for most."""
    found = []
    before, _, behind = content.get("command", "").partition("python ")
    script, *told = shlex.split(behind) or [""]
    source = (ROOT / script).read_text(encoding="utf-8") if (ROOT / script).is_file() else ""
    try:
        if not source:
            raise click.UsageError(f"no script: {script!r}")
        importlib.import_module(Path(script).stem).main.make_context(script, told)
    except click.ClickException as error:
        found.append(f"command: {error.format_message()}")
    if any(f"{variable.split('=')[0]}=" not in source for variable in shlex.split(before)):
        found.append("command: the script writes no variables in front of it")
    machines = [content.get("environment"), *(one.get("environment") for one in content.get("recipes", {}).values())]
    if not any(machines) or not all(machine["cpu"] and machine["torch"] for machine in machines if machine):
        found.append("environment: no processor or no version of torch")
    if "note" in content:
        found.append("note: no script writes one")
    return found


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where what commands name is there: recipes, and the folders of photos by the names that scripts put for them."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    for name in ("PHOTOS", "FOLDER"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_names_a_valid_command_and_a_machine(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    found = wrong(content)
    reasons = [reason for pattern, reason in EXCEPTIONS.items() if fnmatch(path.name, pattern)]
    assert bool(found) == bool(reasons), (
        f"{path.name}: {found or 'is as its script writes it, and named as an exception: ' + reasons[0]}"
    )
    rows = [line for line in PAGE.splitlines() if line.startswith("|") and f"`{path.name}`" in line]
    scripts = re.findall(r"benchmarks/\w+\.py", content.get("command", ""))[:1]
    assert rows and all(scripts in ([], re.findall(r"benchmarks/\w+\.py", row)[:1]) for row in rows)


def test_the_page_names_the_exceptions() -> None:
    listed = [line for line in PAGE.splitlines() if line.startswith("- ")]
    assert set(re.findall(r"`([\w*-]+\.json)`", "\n".join(listed))) == EXCEPTIONS.keys()
    assert len(RESULTS) > 20 and all(any(fnmatch(path.name, pattern) for path in RESULTS) for pattern in EXCEPTIONS)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"command": "python benchmarks/startup.py recipes/mobilenet.yaml --repeat 5"}, "command: No such option"),
        ({"command": "python benchmarks/startup.py recipes/none.yaml"}, "command: Invalid value for 'PATH'"),
        ({"command": "python benchmarks/start.py"}, "command: no script: 'benchmarks/start.py'"),
        ({"command": ""}, "command: no script: ''"),
        (
            {"command": "OMP_NUM_THREADS=1 python benchmarks/startup.py recipes/mobilenet.yaml"},
            "command: the script writes no variables",
        ),
        ({"environment": None}, "environment: no processor"),
        ({"environment": {"cpu": "a", "torch": ""}}, "environment: no processor"),
        ({"note": "seconds are not known"}, "note: no script"),
    ],
)
def test_results_that_no_script_wrote_are_recognised(changed: dict[str, Any], words: str) -> None:
    content = {
        "command": "python benchmarks/startup.py recipes/mobilenet.yaml --repeats 5",
        "environment": {"cpu": "a", "torch": "b"},
    }
    assert wrong(content) == []
    assert words in "; ".join(wrong({**content, **changed}))
