"""Warnings are sorted by whether they affect the verdict."""

from __future__ import annotations

from compress.core.records.warnings import RunWarning, texts


def test_warnings_are_told_apart_by_what_they_affect() -> None:
    warnings = [RunWarning("a"), RunWarning("b", affects_verdict=True), RunWarning("c")]
    assert texts(warnings, affects_verdict=True) == ("b",)
    assert texts(warnings, affects_verdict=False) == ("a", "c")
    assert str(warnings[1]) == "b"
