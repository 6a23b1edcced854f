"""A run without a pause: the first and the last window, and what is said about heat."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.runtime import ExportError, sustained
from export.runtime.sustained import Sustained

COOL = {"temperature_c": None, "throttled": None, "clock_mhz": None}
RUN = Sustained(600.0, 60.0, 9, 1, 1.0, 1.2, (1.0, 1.2), 0.0, False, COOL, COOL)


def test_a_short_sustained_run_compares_its_first_and_last_tenth(int8: Path, images: np.ndarray) -> None:
    found = sustained.sustained(int8, images, 0.5)

    assert found.window_seconds == pytest.approx(0.05) and found.seconds >= 0.5
    assert 1 <= len(found.slices_ms) <= 100 and found.runs >= len(
        found.slices_ms
    )  # a machine that stands still for a moment makes fewer
    assert min(found.slices_ms) <= found.first_p50_ms <= max(found.slices_ms)
    summary = found.summary()
    assert summary["ratio"] == found.last_p50_ms / found.first_p50_ms and summary["sentence"].startswith(
        f"After {found.seconds:.3g} s without a pause it is "
    )


def test_windows_are_the_first_and_last_slices(int8: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that jumps a tenth of a window at each slice, and runs that take longer every time."""
    now = [0.0]
    monkeypatch.setattr(sustained.time, "perf_counter", lambda: now[0])

    def slice_(model: object, images: object, done: int, end: float, begin: float) -> np.ndarray:
        now[0] = end
        return np.array([1.0 + done])

    monkeypatch.setattr(sustained, "_slice", slice_)

    found = sustained.sustained(int8, images, 1200.0)

    assert found.window_seconds == 60.0 and found.runs == len(found.slices_ms) == 200
    assert found.first_p50_ms == 5.5 and found.last_p50_ms == 195.5


def test_sustained_sentences() -> None:
    hot = {"temperature_c": 82.6, "throttled": 30, "clock_mhz": 1000.0}
    warm = {"temperature_c": 50.0, "throttled": 10, "clock_mhz": 2000.0}

    assert RUN.sentence() == (
        "After 600 s without a pause it is 20% slower: 1 ms in the first minute, 1.2 in the last; "
        "this host shows no temperature, nor whether it throttles."
    )
    assert replace(RUN, first=warm, last=hot).sentence().endswith("; 50 to 83 degrees C; throttled 20 times.")
    assert "it is as fast: " in replace(RUN, last_p50_ms=1.04).sentence()
    assert (
        replace(RUN, contaminated=True, other_cores=0.5)
        .sentence()
        .endswith("other processes used 0.50 cores meanwhile.")
    )
    assert replace(RUN, first=warm, last=hot).summary()["throttled"] == 20


def test_invalid_arguments_are_refused(int8: Path, images: np.ndarray) -> None:
    with pytest.raises(ExportError, match="more than 0 seconds"):
        sustained.sustained(int8, images, 0)
    with pytest.raises(ExportError, match="images must be uint8"):
        sustained.sustained(int8, images[:, :8], 1)
