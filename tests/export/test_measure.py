"""Shapes and refusals of measurements; no test judges how fast this machine is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export import measure
from export.measure import LatencyResult, ModelLatency
from export.runtime import ExportError, MissingError


@pytest.fixture(scope="module")
def timed(fp32: Path, int8: Path, images: np.ndarray) -> LatencyResult:
    return measure.latency({"fp32": fp32, "int8": int8}, images, warmup=5, repeats=70, rounds=8)


def _result(**medians: list[float]) -> LatencyResult:
    def model(values: list[float]) -> ModelLatency:
        samples = np.repeat(values, 3)
        rounds = np.repeat(np.arange(len(values)), 3)
        return ModelLatency(float(np.median(samples)), None, None, len(samples), 1, 1, 1.0, 1.0, tuple(values), samples, rounds)

    return LatencyResult({name: model(values) for name, values in medians.items()}, False, 0.0)


def test_every_model_gets_its_runs_in_every_round(timed: LatencyResult) -> None:
    for model in timed.models.values():
        assert model.runs == 70 and model.samples_ms.shape == model.rounds.shape == (70,)
        assert sorted(np.bincount(model.rounds)) == [8, 8, 9, 9, 9, 9, 9, 9]
        assert len(model.round_medians_ms) == 8 and (model.samples_ms > 0).all()
        assert model.p50_ms == float(np.median(model.samples_ms)) and model.p50_ms <= model.p90_ms
        assert model.first_run_ms > 0 and model.load_ms > 0 and (model.threads, model.batch) == (1, 1)


def test_summary_is_the_reports_entry(timed: LatencyResult) -> None:
    assert list(timed.models["fp32"].summary()) == ["p50", "p90", "p99", "runs", "threads", "batch"]


@pytest.mark.parametrize(("repeats", "p90", "p99"), [(63, False, False), (64, True, False), (661, True, False), (662, True, True)])
def test_percentiles_need_samples(int8: Path, images: np.ndarray, repeats: int, p90: bool, p99: bool) -> None:
    model = measure.latency({"int8": int8}, images, warmup=0, repeats=repeats).models["int8"]

    assert (model.p90_ms is not None, model.p99_ms is not None) == (p90, p99)


def test_fewer_runs_than_rounds(int8: Path, images: np.ndarray) -> None:
    model = measure.latency({"int8": int8}, images, warmup=0, repeats=3, rounds=20).models["int8"]

    assert model.runs == 3 and len(model.round_medians_ms) == 3


def test_pictures_vary_and_models_see_the_same_ones(fp32: Path, int8: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, list[int]] = {}

    def record(model: object, pictures: list[np.ndarray]) -> np.ndarray:
        seen.setdefault(id(model), []).extend(int(picture.astype(int).sum()) for picture in pictures)
        return np.ones(len(pictures))

    monkeypatch.setattr(measure, "_time", record)

    measure.latency({"fp32": fp32, "int8": int8}, images, warmup=0, repeats=50, rounds=5)

    first, second = seen.values()
    assert first == second and len(set(first)) > 40


def test_ratio_is_paired_by_round() -> None:
    """The machine slows down by half between rounds; the ratio does not."""
    drifting = _result(teacher=[4.0, 6.0, 4.0, 6.0], student=[1.0, 1.5, 1.0, 1.5])

    assert measure.ratio(drifting, "teacher", "student") == (4.0, 4.0, 4.0)
    noisy = _result(a=[2.0, 3.0, 4.0, 5.0, 6.0], b=[1.0] * 5)
    value, low, high = measure.ratio(noisy, "a", "b", seed=1)
    assert low < value == 4.0 < high and measure.ratio(noisy, "a", "b", seed=1) == (value, low, high)


def test_p50_interval_holds_p50() -> None:
    value, low, high = measure.p50_interval(_result(a=[1.0, 1.1, 1.2, 1.3, 5.0]), "a")

    assert value == 1.2 and 1.0 <= low <= 1.2 <= high <= 5.0 and low < high


@pytest.mark.parametrize(
    ("before", "after", "wall", "expected"),
    [
        ((10.0, 5.0), (12.0, 7.0), 2.0, (0.0, False)),
        ((10.0, 5.0), (12.4, 7.0), 2.0, (0.2, True)),
        ((10.0, 5.0), (12.05, 7.0), 2.0, (0.025, False)),
        (None, (1.0, 1.0), 2.0, (None, None)),
    ],
)
def test_contamination(before, after, wall: float, expected: tuple) -> None:
    cores, contaminated = measure._others(before, after, wall)

    assert contaminated is expected[1] and cores == (None if expected[0] is None else pytest.approx(expected[0]))


def test_without_proc_nothing_is_guessed(int8: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_busy_seconds", lambda: None)

    result = measure.latency({"int8": int8}, images, warmup=0, repeats=2)

    assert result.contaminated is None and result.other_cores is None


def test_memory_is_that_of_a_fresh_process(int8: Path) -> None:
    ballast = np.ones(300_000_000, dtype=np.uint8)  # ru_maxrss would hand this on to the child

    peak = measure.memory(int8)

    if peak is None:
        pytest.skip("this kernel does not tell a process's peak memory")
    assert 10_000_000 < peak < 250_000_000 < ballast.nbytes


def test_refusals(int8: Path, images: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"nothing")

    with pytest.raises(ExportError, match="at least one model"):
        measure.latency({}, images)
    with pytest.raises(ExportError, match="images must be uint8"):
        measure.latency({"int8": int8}, images[:, :8])
    with pytest.raises(MissingError, match="no such file"):
        measure.memory(tmp_path / "absent.onnx")
    with pytest.raises(ExportError, match="the process that measures memory failed: .*cannot load"):
        measure.memory(tmp_path / "broken.onnx")
