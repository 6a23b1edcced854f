"""Shapes and refusals of measurements; no test judges how fast this machine is."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compress.stages.support import latency
from export.int8.quantize import quantize
from export.runtime import TARGETS, ExportError, UnavailableError, conditions, isa, latency_stats, rounds
from export.runtime import latency as measure
from export.runtime.latency_stats import LatencyResult, ModelLatency

SWITCHES = measure._switches


@pytest.fixture(autouse=True)
def every_run_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else this machine does."""
    monkeypatch.setattr(measure, "_switches", lambda threads: None)


@pytest.fixture(scope="module")
def int8(fp32: Path, calibration: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For this machine: a file for another instruction set is not timed."""
    if isa() not in TARGETS:
        pytest.skip(f"there is no int8 file for this machine ({isa()})")
    path = tmp_path_factory.mktemp("here") / "small.int8.onnx"
    quantize(fp32, path, calibration, isa=isa())
    return path


@pytest.mark.parametrize("target", ["web", "x86-avx2" if isa() == "arm64" else "arm64"])
def test_a_file_for_another_instruction_set_is_not_timed(
    fp32: Path, calibration: np.ndarray, images: np.ndarray, tmp_path: Path, target: str
) -> None:
    quantize(fp32, tmp_path / "other.onnx", calibration, isa=target)

    with pytest.raises(
        ExportError,
        match=f"other was built for {target} and this machine is {isa()}: its latency here says nothing",
    ):
        measure.latency({"fp32": fp32, "other": tmp_path / "other.onnx"}, images, warmup=0, repeats=2)


@pytest.fixture(scope="module")
def timed(fp32: Path, int8: Path, images: np.ndarray) -> LatencyResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "_switches", lambda threads: None)
        return measure.latency({"fp32": fp32, "int8": int8}, images, warmup=5, repeats=70, rounds=8)


def _result(**medians: list[float]) -> LatencyResult:
    def model(values: list[float]) -> ModelLatency:
        samples = np.repeat(values, 3)
        rounds = np.repeat(np.arange(len(values)), 3)
        return ModelLatency(
            float(np.median(samples)), None, None, len(samples), 1, 1, 1.0, 1.0, tuple(values), samples, rounds
        )

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


@pytest.mark.parametrize(
    ("repeats", "p90", "p99"), [(63, False, False), (64, True, False), (661, True, False), (662, True, True)]
)
def test_percentiles_need_samples(int8: Path, images: np.ndarray, repeats: int, p90: bool, p99: bool) -> None:
    model = measure.latency({"int8": int8}, images, warmup=0, repeats=repeats).models["int8"]

    assert (model.p90_ms is not None, model.p99_ms is not None) == (p90, p99)


def test_fewer_runs_than_rounds(int8: Path, images: np.ndarray) -> None:
    model = measure.latency({"int8": int8}, images, warmup=0, repeats=3, rounds=20).models["int8"]

    assert model.runs == 3 and len(model.round_medians_ms) == 3


def test_images_vary_and_all_models_see_the_same_ones(
    fp32: Path, int8: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, list[int]] = {}

    def record(model: object, images: list[np.ndarray], *_: object) -> tuple[np.ndarray, ...]:
        seen.setdefault(id(model), []).extend(int(image.astype(int).sum()) for image in images)
        return np.ones(len(images)), np.zeros(len(images), dtype=bool), np.ones(len(images))

    monkeypatch.setattr(measure, "_time", record)

    measure.latency({"fp32": fp32, "int8": int8}, images, warmup=0, repeats=50, rounds=5)

    first, second = seen.values()
    assert first == second and len(set(first)) > 40


def test_ratio_is_paired_by_round() -> None:
    """The machine slows down by half between rounds; the ratio does not."""
    drifting = _result(teacher=[4.0, 6.0, 4.0, 6.0], student=[1.0, 1.5, 1.0, 1.5])

    assert latency_stats.speedup_with_interval(drifting, "teacher", "student") == pytest.approx(
        (4.0, 3.96, 4.04)
    )  # but for the place in memory
    noisy = _result(a=[2.0, 3.0, 4.0, 5.0, 6.0], b=[1.0] * 5)
    value, low, high = latency_stats.speedup_with_interval(noisy, "a", "b", seed=1)
    assert low < value == 4.0 < high and latency_stats.speedup_with_interval(noisy, "a", "b", seed=1) == (
        value,
        low,
        high,
    )


def test_p50_interval_contains_p50() -> None:
    value, low, high = latency_stats.p50_interval(_result(a=[1.0, 1.1, 1.2, 1.3, 5.0]), "a")

    assert value == 1.2 and 0 < low < 1.2 < high


# Rounds, runs of each, level of a round from round to round, and the spread within a round.
ROUNDS = {
    "8 rounds alike": (8, 9, 0.0, 0.05),
    "8 rounds": (8, 9, 0.03, 0.03),
    "20 rounds alike": (20, 35, 0.0, 0.05),
    "20 rounds": (20, 35, 0.03, 0.03),
    "two speeds": (20, 35, None, 0.03),
    "60 rounds": (60, 12, 0.03, 0.03),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ROUNDS)
@pytest.mark.extended
def test_both_intervals_cover_what_they_claim(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `_expand` 88 % with 8 rounds and 92 % with 20."""
    monkeypatch.setattr(latency_stats, "_RESAMPLES", 300)
    count, runs, between, within = ROUNDS[name]
    random, trials, covered = np.random.default_rng(2), 400, np.zeros(2)

    def draw(rounds_of: int) -> list[np.ndarray]:
        level = np.where(random.random(rounds_of) < 0.3, 1.2, 1.0) if between is None else 1.0
        level = level * (1 + (0.01 if between is None else between) * random.standard_normal(rounds_of))
        return list(level[:, None] * (1 + within * random.standard_normal((rounds_of, runs))))

    many = draw(20_000)
    # p50 is the median of all runs, a speed-up that of the rounds' ratios; with two speeds they are not the same.
    true = np.median(np.concatenate(many)), np.median([np.median(part) for part in many])
    for trial in range(trials):
        parts = {"a": draw(count), "b": [np.ones(runs)] * count}
        attempt = rounds.Attempt(parts, [None] * count, None, 1.0, None)
        one = dict.fromkeys(parts, 1.0)
        result = latency_stats.summarize_attempts([attempt], 1, one, one, {})
        for place, ends in enumerate(
            (latency_stats.p50_interval(result, "a", seed=trial), latency_stats.speedup_with_interval(result, "a", "b"))
        ):
            covered[place] += ends[1] <= true[place] <= ends[2]
    # 95 % less three standard errors of 400 trials; two speeds are no single median to cover.
    assert (covered / trials >= (0.9 if between is None else 0.917)).all(), covered / trials


@pytest.mark.parametrize(
    ("degrees", "value"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (7, 2.365), (19, 2.093), (59, 2.001)]
)
def test_students_t_is_that_of_the_tables(degrees: int, value: float) -> None:
    assert latency_stats._student(degrees) == pytest.approx(value, abs=0.005)


def test_a_ratio_on_a_crowded_machine_is_of_cpu_time() -> None:
    """`long` waits in nearly every run, seven times as long as it computes; `short` never does."""
    one = {"long": 1.0, "short": 1.0}
    cpu = {"long": [np.full(4, 1.0)] * 10, "short": [np.full(4, 0.5)] * 10}
    for lost in ([[0, 1, 2, 3]] * 10, [[0, 1]] * 10):  # too many to leave them out, and half of them
        attempt = replace(_attempt(lost), cpu=cpu)
        result = latency_stats.summarize_attempts([attempt], 1, one, one, {})
        assert latency_stats.speedup_with_interval(result, "long", "short")[0] == pytest.approx(2.0)
        assert "other processes interrupted long in" in result.conditions()["cpu_ratios"]
        several = latency_stats.summarize_attempts([replace(attempt, cpu=None)], 2, one, one, {})
        assert several.cpu_ratios is None and latency_stats.speedup_with_interval(several, "long", "short")[0] >= 10
    for few in (_attempt([[0]] * 2 + [[]] * 8), _attempt([[0, 1]] * 10, contaminated=False)):
        quiet = latency_stats.summarize_attempts([replace(few, cpu=cpu)], 1, one, one, {})
        assert quiet.cpu_ratios is None and latency_stats.speedup_with_interval(quiet, "long", "short")[0] > 5


def test_cpu_time_is_measured_beside_the_clock(fp32: Path, images: np.ndarray) -> None:
    single = measure.latency({"a": fp32}, images, warmup=0, repeats=20, rounds=4)
    assert len(single.cpu_round_medians_ms["a"]) == 4 and min(single.cpu_round_medians_ms["a"]) > 0
    assert measure.latency({"a": fp32}, images, threads=2, warmup=0, repeats=8, rounds=2).cpu_round_medians_ms == {}


@pytest.mark.parametrize(
    ("before", "after", "wall", "expected"),
    [
        ((10.0, 5.0), (12.0, 7.0), 2.0, (0.0, False)),
        ((10.0, 5.0), (12.4, 7.0), 2.0, (0.2, True)),
        ((10.0, 5.0), (12.05, 7.0), 2.0, (0.025, False)),
        (None, (1.0, 1.0), 2.0, (None, None)),
    ],
)
def test_other_processes_contaminate_a_measurement(before, after, wall: float, expected: tuple) -> None:
    cores, contaminated = conditions.load_of_others(before, after, wall)

    assert contaminated is expected[1] and cores == (None if expected[0] is None else pytest.approx(expected[0]))


def test_without_proc_the_load_is_none(int8: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "busy_seconds", lambda: None)

    result = measure.latency({"int8": int8}, images, warmup=0, repeats=2)

    assert result.contaminated is None and result.other_cores is None


def _disturb(monkeypatch: pytest.MonkeyPatch, flags: list[bool]) -> None:
    """Attempts that other processes disturb, or not, one flag each."""
    left = iter(flags)
    monkeypatch.setattr(
        conditions, "load_of_others", lambda before, after, wall: (0.5, True) if next(left) else (0.0, False)
    )
    monkeypatch.setattr(conditions, "round_load", lambda before, after, wall: None)
    monkeypatch.setattr(rounds, "DRIFT_LIMIT", 1e9)


@pytest.mark.parametrize(
    ("flags", "attempts", "kept", "contaminated"),
    [
        ([False], 1, 1, False),
        ([True, False], 2, 1, False),
        ([True, True, False], 3, 1, False),
        ([True, True, True], 3, 3, True),
    ],
)
def test_a_disturbed_measurement_is_repeated_and_rounds_joined_if_none_is_quiet(
    int8: Path,
    images: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    flags: list[bool],
    attempts: int,
    kept: int,
    contaminated: bool,
) -> None:
    _disturb(monkeypatch, flags)

    result = measure.latency({"int8": int8}, images, warmup=0, repeats=30, rounds=6, attempts=3)

    model = result.models["int8"]
    assert (result.attempts, result.contaminated) == (attempts, contaminated)
    assert (
        (model.runs, len(model.round_medians_ms))
        == (30 * kept, 6 * kept)
        == (len(model.samples_ms), len(set(model.rounds)))
    )
    assert bool(result.disturbances) is contaminated
    if contaminated:
        assert result.other_cores == pytest.approx(0.5)
        assert result.disturbances == ("other processes used 0.50 cores while it was measured",)


def _attempt(lost: list[list[int]], *, contaminated: bool = True) -> rounds.Attempt:
    """Ten rounds of four runs of 1 ms, of `long` the runs named in each round interrupted (7 ms); `short` never is."""
    flags = [np.isin(np.arange(4), places) for places in lost]
    parts = {"long": [np.where(flag, 7.0, 1.0) for flag in flags], "short": [np.full(4, 0.1)] * 10}
    nothing = [np.zeros(4, dtype=bool)] * 10
    return rounds.Attempt(
        parts, [0.1 * number for number in range(10)], 1.0, 2.0, contaminated, {"long": flags, "short": nothing}
    )


def test_runs_that_lost_their_core_do_not_count() -> None:
    everything = [0, 1, 2, 3]
    left, counts, unfit = rounds.drop_interrupted(_attempt([[0, 1, 3], everything, [2], [], *[[0, 1, 2]] * 6]))

    assert unfit is None and counts == {"long": 26, "short": 0}
    assert (
        len(left.parts["long"]) == len(left.parts["short"]) == 9
    )  # a round that has no time of one has none of the other
    assert left.round_other_cores == pytest.approx([0.0, *(0.1 * number for number in range(2, 10))])
    assert all((part == 1.0).all() for part in left.parts["long"]) and [len(part) for part in left.parts["long"]] == [
        1,
        3,
        4,
        1,
        1,
        1,
        1,
        1,
        1,
    ]

    busy = _attempt([everything] * 7 + [[0]] * 3)
    assert rounds.drop_interrupted(busy) == (
        busy,
        {},
        "other processes interrupted long in 31 of 40 runs, too many to leave them out",
    )
    for contaminated in (False, None):
        alone = replace(_attempt([everything] * 10), contaminated=contaminated)
        assert rounds.drop_interrupted(alone) == (alone, {}, None)
    unknown = replace(alone, interrupted=None)
    assert rounds.drop_interrupted(unknown) == (unknown, {}, None)
    joined = rounds.join([busy, busy])
    assert (
        joined.interrupted is not None
        and len(joined.interrupted["long"]) == 20
        and rounds.join([busy, unknown]).interrupted is None
    )


def test_interruptions_by_too_many_own_threads_are_not_blamed_on_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conditions, "_allowed", lambda: [0, 1])
    assert conditions.too_many_threads(2) is None
    why = "64 threads on 2 cores interrupt each other; lower validate.threads"
    for lost in ([0, 1, 2, 3], [0]):  # in every run, and in so few that they could be left out
        attempt = _attempt([lost] * 10)
        told = ([attempt], 64, {"long": 1.0, "short": 1.0}, {"long": 1.0, "short": 1.0}, {})
        result = latency_stats.summarize_attempts(*told)
        assert (result.unfit, result.interrupted, result.models["long"].runs) == (why, {}, 40)
        assert [
            text for text in latency.warnings(result, None) if "quiet machine" in text or "interrupted" in text
        ] == []
        quiet = latency_stats.summarize_attempts([replace(attempt, contaminated=False)], *told[1:])
        assert (quiet.unfit, quiet.interrupted, quiet.models["long"].runs) == (None, {}, 40)
    monkeypatch.setattr(conditions, "_allowed", lambda: [0])
    assert conditions.too_many_threads(2) == "2 threads on 1 core interrupt each other; lower validate.threads"


def test_result_says_why_interrupted_runs_could_not_be_dropped() -> None:
    result = latency_stats.summarize_attempts(
        [_attempt([[0, 1, 2, 3]] * 10)], 1, {"long": 1.0, "short": 1.0}, {"long": 1.0, "short": 1.0}, {}
    )
    assert result.unfit is not None and result.conditions()["unfit"] == result.unfit and result.interrupted == {}
    assert latency_stats.speedup_with_interval(result, "long", "short")[0] == pytest.approx(70)
    clean = latency_stats.summarize_attempts(
        [_attempt([[0, 1, 2]] * 10)], 1, {"long": 1.0, "short": 1.0}, {"long": 1.0, "short": 1.0}, {}
    )
    assert (
        clean.unfit is None
        and latency_stats.speedup_with_interval(clean, "long", "short")[0] == pytest.approx(10)
        and clean.models["long"].runs == 10
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux counts what a thread loses to others")
def test_losing_the_core_counts_as_interruption_and_waiting_does_not() -> None:
    def compute(seconds: float) -> None:
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass

    before = os.sched_getaffinity(0)
    core = min(before)
    code = f"import os; os.sched_setaffinity(0, {{{core}}}); print(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as neighbour:
        assert neighbour.stdout is not None
        neighbour.stdout.readline()
        os.sched_setaffinity(0, {core})
        try:
            times, lost, _ = measure._time(compute, [0.1] * 3, SWITCHES(1))
            _, waited, _ = measure._time(time.sleep, [0.0001] * 20, SWITCHES(1))
        finally:
            os.sched_setaffinity(0, before)
            neighbour.kill()
    assert lost.all() and (times > 110).all() and waited.sum() < 20
    assert not measure._time(compute, [0.001])[1].any()  # a system that tells nothing


def test_a_drifting_machine_is_a_disturbance() -> None:
    slowing = [np.array([value]) for value in (1.0, 1.0, 1.1, 1.2, 1.3, 1.3)]
    steady = [np.array([1.0])] * 6

    def said(**parts: list[np.ndarray]) -> tuple[str, ...]:
        return rounds.disturbances(rounds.Attempt(parts, [None] * 6, 0.0, 1.0, False))

    assert said(a=slowing, b=slowing) == (
        "the machine became 30% slower from the first to the last third of the rounds",
    )
    assert said(a=slowing[::-1]) == ("the machine became 23% faster from the first to the last third of the rounds",)
    assert said(a=slowing, b=steady, c=steady) == () and said(a=steady) == ()
    assert rounds.drift([1.0] * 5) is None and rounds.drift([1.0, 1.0, 1.0, 1.0, 2.0, 2.0]) == 2.0


def test_two_speeds_are_distinguished_from_noise() -> None:
    random = np.random.default_rng(0)
    fast, slow = 2.35 + 0.05 * random.standard_normal(12), 3.6 + 0.1 * random.standard_normal(8)

    found = rounds.two_speeds(np.concatenate([fast, slow]))

    assert found is not None and found == (pytest.approx(2.35, abs=0.05), pytest.approx(3.6, abs=0.1), 8)
    assert rounds.two_speeds(1 + 0.1 * random.standard_normal(20)) is None
    assert rounds.two_speeds(random.uniform(1, 2, 20)) is None
    assert rounds.two_speeds([1.0] * 19 + [9.0]) is None  # one slow round
    assert rounds.two_speeds([1.0] * 20) is None and rounds.two_speeds([1.0, 2.0]) is None
    assert "two speeds, 1 and 2 ms (10 of 20 rounds slower)" in rounds.two_speeds_note("a.onnx", [1.0, 2.0] * 10)


def test_conditions_name_what_was_measured(timed: LatencyResult, int8: Path) -> None:
    known = timed.conditions()

    assert known["sha256"]["int8"] == hashlib.sha256(int8.read_bytes()).hexdigest()
    assert (known["rounds"], known["threads"], known["spinning"], known["attempts"]) == (8, 1, False, 1)
    assert set(known["drift"]) == {"fp32", "int8"} and len(known["round_other_cores"]) == 8
    json.dumps(known)


def test_a_model_against_itself_is_neither_faster_nor_slower(int8: Path, images: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "copy.onnx").write_bytes(int8.read_bytes())

    result = measure.latency({"a": int8, "b": tmp_path / "copy.onnx"}, images, repeats=1000, rounds=40)
    value, low, high = latency_stats.speedup_with_interval(result, "a", "b")

    assert (
        low <= value <= high and 0.8 < value < 1.25
    )  # a first run, a load or a slow round that one of them alone paid for would show


def test_photo_latency_includes_the_decoding(int8: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []

    def decode(content: bytes) -> np.ndarray:
        seen.append(content)
        time.sleep(0.002)
        return np.frombuffer(content, np.uint8).reshape(images.shape[1:])

    photos = [image.tobytes() for image in images[:4]]
    monkeypatch.setattr(measure, "_switches", lambda threads: pytest.fail("photos differ in size: each run counts"))

    result = measure.photo_latency({"int8": int8}, photos, decode, warmup=1, repeats=10)

    assert result.models["int8"].p50_ms > 2 and result.models["int8"].runs == 10 and result.interrupted == {}
    assert set(seen) == set(photos) and len(seen) == 1 + 1 + 1 + 10  # check, first run, warm-up, timed
    with pytest.raises(ExportError, match="images must be uint8"):
        measure.photo_latency({"int8": int8}, photos, lambda content: images[0, :4])


def test_memory_is_that_of_a_fresh_process(int8: Path) -> None:
    ballast = np.ones(300_000_000, dtype=np.uint8)  # ru_maxrss would hand this on to the child

    peak = measure.memory(int8)

    if peak is None:
        pytest.skip("this kernel does not tell a process's peak memory")
    assert 10_000_000 < peak < 250_000_000 < ballast.nbytes


def test_invalid_arguments_are_refused(int8: Path, images: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"nothing")

    with pytest.raises(ExportError, match="at least one model"):
        measure.latency({}, images)
    with pytest.raises(ExportError, match="images must be uint8"):
        measure.latency({"int8": int8}, images[:, :8])
    with pytest.raises(UnavailableError, match="no such file"):
        measure.memory(tmp_path / "absent.onnx")
    with pytest.raises(ExportError, match="the process that measures memory failed: .*cannot load"):
        measure.memory(tmp_path / "broken.onnx")
