"""report.json's types: the same keys and values as 0.1.0 wrote, tolerance on reading, and the reference page."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from compress.cli.main import cli
from compress.core.errors import StageError
from compress.report import reference_docs
from compress.report.read import read_report
from compress.report.schema import REQUIRED, Report, json_schema
from compress.report.schema.base import ReportPart
from compress.report.schema.plan import PlanSection

FIXTURES = Path(__file__).parent / "fixtures"
REPORTS = sorted(FIXTURES.glob("*/report.json"))
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "report.md"


def every_part(part: type[ReportPart] = ReportPart) -> list[type[ReportPart]]:
    return [found for one in part.__subclasses__() for found in (one, *every_part(one))]


def unknown_keys(part: Any, path: str = "") -> set[str]:
    """The keys of a report that no field describes."""
    if isinstance(part, list):
        return {key for one in part for key in unknown_keys(one, path)}
    if not isinstance(part, ReportPart):
        return set()
    below = {key for name in type(part).model_fields for key in unknown_keys(getattr(part, name), f"{path}.{name}")}
    return below | {f"{path}.{key}" for key in part.model_extra or {}}


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.parent.name)
def test_a_report_by_0_1_0_is_written_again_byte_for_byte(path: Path) -> None:
    report = read_report(path)

    assert json.dumps(report.to_json(), indent=1) + "\n" == path.read_text(encoding="utf-8")
    assert unknown_keys(report) == set()


def test_a_plan_by_0_1_0_is_written_again() -> None:
    content = json.loads((FIXTURES / "plan-0.1.0.json").read_text(encoding="utf-8"))
    plan = PlanSection.model_validate(content)

    assert plan.to_json() == content
    # These two are keys of the file under plans/ alone.
    assert unknown_keys(plan) == {".recipe", ".asked"}


def test_unknown_keys_are_kept_wherever_they_stand() -> None:
    content = json.loads(REPORTS[0].read_text(encoding="utf-8"))
    content["later"] = {"a": [1, None]}
    content["models"][0]["later"] = None
    content["models"][0]["latency_ms"]["later"] = 2
    content["analysis"]["features"]["networks"][0]["later"] = "x"

    assert Report.model_validate(content).to_json() == content


def test_numbers_stay_as_they_were_written() -> None:
    content = {"requirements": [{"limit": 2_000_000, "value": 2.0, "ci95": [1, 2.5]}], "seconds": {"data": 3}}

    assert json.dumps(Report.model_validate(content).to_json()) == json.dumps(content)


def places(part: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every described key that a report holds."""
    if isinstance(part, list):
        for number, one in enumerate(part):
            yield from places(one, (*path, number))
    elif isinstance(part, ReportPart):
        for name in part.model_fields_set - set(part.model_extra or {}):
            here = (*path, type(part).model_fields[name].alias or name)
            yield here
            yield from places(getattr(part, name), here)


def test_every_key_may_be_null_or_missing() -> None:
    content = json.loads(REPORTS[0].read_text(encoding="utf-8"))
    found = list(places(Report.model_validate(content)))
    assert len(found) > 800
    for *path, key in found:
        holder = content
        for step in path:
            holder = holder[step]
        value, holder[key] = holder[key], None
        Report.model_validate(content)
        del holder[key]
        Report.model_validate(content)
        holder[key] = value


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"models": [{"bytes": "many"}]}, "models.0.bytes: Input should be a valid integer"),
        ({"status": "perhaps"}, "status: Input should be 'passed', 'failed' or 'undecided'"),
        ({"teacher": "resnet20"}, "teacher: Input should be"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    content = json.loads(REPORTS[0].read_text(encoding="utf-8"))
    (tmp_path / "report.json").write_text(json.dumps(content | change))

    with pytest.raises(StageError, match=re.escape(said)):
        read_report(tmp_path)


def test_every_key_has_a_description_and_a_row() -> None:
    fields = [(part, name, info) for part in every_part() for name, info in part.model_fields.items()]
    assert [f"{part.__name__}.{name}" for part, name, info in fields if not info.description] == []
    rows = set(re.findall(r"^\| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert {info.alias or name for _, name, info in fields} <= rows


def test_the_reference_is_generated_from_the_fields() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference_docs.markdown(), (
        f"write it again: python -m compress.report.reference_docs {PAGE}"
    )


def test_the_command_prints_the_json_schema() -> None:
    result = CliRunner().invoke(cli, ["schema", "--report"], standalone_mode=False)

    schema = json.loads(result.output)
    assert schema == json_schema()
    assert schema["required"] == list(REQUIRED) and schema["properties"]["schema"]["const"] == 1


def test_the_types_load_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import compress.report.reference_docs as page; page.markdown()"
    subprocess.run([sys.executable, "-c", code], check=True)
