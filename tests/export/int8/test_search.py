"""The search ranks without labels, keeps few, and says why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.int8 import search
from export.int8.quantize import QuantizeSettings, prepare
from export.int8.search import PRUNED, SURVIVORS, Trial, divergence, select
from export.runtime import ExportError, Model


@pytest.fixture(scope="module")
def tried(fp32: Path, calibration: np.ndarray, images: np.ndarray, tmp_path_factory: pytest.TempPathFactory):
    lines: list[str] = []
    trials = search.run(
        prepare(fp32, calibration),
        tmp_path_factory.mktemp("search"),
        QuantizeSettings("x86-vnni"),
        images[:32],
        lines.append,
    )
    return trials, lines


def test_divergence_is_kl_of_the_softmax() -> None:
    a, b = np.array([[1.0, 2.0, 0.5], [0.0, 0.0, 9.0]]), np.array([[0.0, 2.5, 0.5], [0.0, 1.0, 7.0]])
    p, q = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (a, b))

    assert divergence(a, b) == pytest.approx(float((p * np.log(p / q)).sum(axis=1).mean()))
    assert divergence(a, a + 1000) == pytest.approx(0, abs=1e-12)


def test_every_variant_is_tried_and_reported(tried) -> None:
    trials, lines = tried
    made = [trial for trial in trials if trial.kl is not None]
    names = [trial.name for trial in trials]

    assert len(names) == len(set(names)) and len(names) >= 4 * 3 + 1 + len(PRUNED)
    assert {"minmax", "minmax, first and last in float"} <= set(names)
    assert any("bias corrected" in trial.name for trial in made)
    assert len(lines) == 1 + len(names) - len(PRUNED) and all(
        any(trial.name in line for line in lines) for trial in made
    )
    assert all(trial.reason for trial in trials)


def test_trial_numbers_match_the_files(tried, fp32: Path, images: np.ndarray) -> None:
    expected = Model.load(fp32).run(images[:32])
    for trial in tried[0]:
        if trial.kl is not None:
            found = search.logits(trial.path, "x86-vnni", images[:32])
            assert trial.kl == pytest.approx(divergence(expected, found)) and trial.bytes == trial.path.stat().st_size
            assert trial.agreement == (expected.argmax(1) == found.argmax(1)).mean()


def test_survivors_come_first_by_divergence(tried) -> None:
    kept = [trial for trial in tried[0] if trial.kept]
    made = [trial for trial in tried[0] if trial.kl is not None]

    assert len(kept) == SURVIVORS and tried[0][: len(kept)] == tuple(kept)
    assert kept[0].kl == min(trial.kl for trial in made)


def test_known_bad_combinations_are_named_and_not_tried(tried) -> None:
    pruned = [trial for trial in tried[0] if trial.reason.startswith("not tried")]

    assert len(pruned) == 4 and all(trial.kl is None and not trial.kept for trial in pruned)
    assert any("66.97" in trial.reason for trial in pruned) and any("48.80" in trial.reason for trial in pruned)


def _trial(name: str, kl: float, size: int) -> Trial:
    return Trial(name, kl, 1.0, size, False, "")


def test_survivors_are_the_closest_and_the_smallest() -> None:
    trials = [
        _trial("a", 0.1, 4000),
        _trial("b", 0.2, 3000),
        _trial("c", 0.3, 2000),
        _trial("d", 0.4, 1000),
        _trial("e", 0.25, 3500),
    ]

    found = select(trials)

    assert [trial.name for trial in found if trial.kept] == ["a", "b", "d"]
    why = {trial.name: trial.reason for trial in found}
    assert why["e"] == "b is closer to float and not larger" and "not among the 3" in why["c"]


def test_sizes_within_a_per_cent_are_equal_and_runners_up_fill_the_places() -> None:
    found = select([_trial("a", 0.2, 1000), _trial("b", 0.1, 1005), _trial("c", 0.15, 2000), _trial("d", 0.9, 3000)])

    assert [trial.name for trial in found if trial.kept] == ["b", "c", "a"]
    assert "runner-up" in found[1].reason


def test_a_variant_that_cannot_be_made_is_listed(
    fp32: Path, calibration: np.ndarray, images: np.ndarray, tmp_path: Path, monkeypatch
) -> None:
    made = search.emit

    def failing(prepared, path, settings):
        if settings.float_layers:
            raise ExportError("planted")
        return made(prepared, path, settings)

    monkeypatch.setattr(search, "emit", failing)
    trials = search.run(
        prepare(fp32, calibration), tmp_path, QuantizeSettings("x86-vnni"), images[:8], lambda text: None
    )

    failed = [trial for trial in trials if "planted" in trial.reason]
    assert len(failed) >= 3 and not any(trial.kept for trial in failed)


def test_files_for_another_instruction_set_run_as_written(
    fp32: Path, calibration: np.ndarray, images: np.ndarray, tmp_path: Path
) -> None:
    prepared = prepare(fp32, calibration)
    search.emit(prepared, tmp_path / "arm.onnx", replace(QuantizeSettings("x86-vnni"), isa="arm64"))

    found = search.logits(tmp_path / "arm.onnx", "arm64", images[:16])

    assert (found.argmax(1) == prepared.runtime.run(images[:16]).argmax(1)).mean() > 0.9
