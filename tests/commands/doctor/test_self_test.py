"""`compress doctor --verdict`: every planted fault is caught and named, and a missed one is an exit code."""

from __future__ import annotations

import pytest

from compress.cli import main
from compress.commands.doctor import self_test
from compress.commands.doctor.self_test import FaultResult

NAMES = (
    "nothing planted",
    "a model against itself",
    "BGR for RGB",
    "squash for crop",
    "wrong mean and deviation",
    "swapped classes",
    "per-tensor int8",
    "a file for another instruction set",
    "a busy neighbour",
)


@pytest.mark.slow
def test_every_planted_fault_is_caught_and_named(capfd: pytest.CaptureFixture[str]) -> None:
    code = main.main(["doctor", "--verdict"])

    lines = capfd.readouterr().out.splitlines()
    assert code == 0, "\n".join(lines)
    assert [line[8:].startswith(name) for line, name in zip(lines[1:], NAMES, strict=False)] == [True] * len(NAMES)
    said = dict(zip(NAMES, lines[1:], strict=False))
    for name, word in {
        "BGR for RGB": "looks like BGR",
        "squash for crop": "looks like squash for crop",
        "wrong mean and deviation": "looks like another normalisation",
        "swapped classes": "looks like swapped classes",
        "per-tensor int8": "looks like per-tensor int8",
        "a file for another instruction set": "built for",
    }.items():
        assert said[name].startswith("caught") and word in said[name]
    assert "drop 0.00 points" in said["a model against itself"]
    assert "no fault named" in said["nothing planted"]


@pytest.mark.parametrize(("caught", "state", "code"), [(True, "caught", 0), (None, "note", 0), (False, "MISSED", 4)])
def test_a_missed_fault_is_exit_4(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, caught: bool | None, state: str, code: int
) -> None:
    outcomes = (
        FaultResult("control", True, "passed", control=True),
        FaultResult("a fault", caught, "failed; looks like it"),
    )
    monkeypatch.setattr(self_test, "build_fixture", lambda folder: None)
    monkeypatch.setattr(self_test, "FAULTS", tuple(lambda fixture, one=one: one for one in outcomes))

    assert main.main(["doctor", "--verdict"]) == code

    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["ok", "control", "passed"] and lines[2].split()[:3] == [state, "a", "fault"]
    assert lines[-1].startswith("every fault was caught" if code == 0 else "the verdict cannot be trusted")
