"""The self-test of `compress doctor --verdict`: plants faults and checks that the verdict catches and names each.

The reference of every fault is the float file of a small network; see `self_test_network.py`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import export.runtime.latency
import export.runtime.latency_stats
from compress.commands.doctor.self_test_network import CLASSES, NORMALIZATION, SelfTestFixture, build_fixture, contract
from compress.recipe.schema import Require
from compress.verdict import diagnosis, requirements
from compress.verdict.facts import Facts
from compress.verdict.intervals import paired_drop
from export.graph.from_torch import to_onnx
from export.int8.quantize import quantize
from export.runtime import TARGETS, Model, isa, runs_on

WRONG_NORMALIZATION = diagnosis.IMAGENET
MAX_DROP = 2.0  # points of top-1
TIMED_RUNS = 300


@dataclass(frozen=True)
class FaultResult:
    """The result for one planted fault. `caught` is None where this machine cannot show it (no /proc/stat)."""

    name: str
    caught: bool | None
    detail: str
    control: bool = False  # nothing is planted, so nothing may be found


def run(report: Callable[[FaultResult], None]) -> bool:
    """Plant one fault after the other and return whether all were caught; those that cannot be shown do not count."""
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        fixture = build_fixture(Path(temporary))
        for plant in FAULTS:
            results.append(plant(fixture))
            report(results[-1])
    return all(result.caught is not False for result in results)


def _answers(path: Path) -> diagnosis.Predict:
    """Load a file as `diagnosis` takes it. The file takes whole pixels, so others are rounded and clipped."""
    model = Model.load(path)
    return lambda pixels: model.run(pixels.round().clip(0, 255).astype(np.uint8))


def _judged(fixture: SelfTestFixture, logits: NDArray[np.floating]) -> requirements.Requirement:
    """Judge answers to the test images against the float file with the right input."""
    drop = paired_drop(fixture.correct, logits.argmax(axis=1) == fixture.labels)
    return requirements.judge(Require(max_top1_drop=MAX_DROP), Facts("student", "local", drop=drop))[0]


def _result(name: str, row: requirements.Requirement, named: str | None, *expected: str) -> FaultResult:
    """Build a result; the fault is caught if the row is not passed and all expected words name it."""
    caught = row.verdict != "passed" and named is not None and all(word in named for word in expected)
    drop = f" (drop {row.value:.1f} points)" if row.name == "max_top1_drop" and row.value is not None else ""
    return FaultResult(name, caught, f"{row.verdict}{drop}; {named or 'not named'}")


def _input(
    name: str,
    fixture: SelfTestFixture,
    path: Path,
    fed: NDArray[np.uint8],
    normalization: diagnosis.Constants,
    *expected: str,
    crop: NDArray[np.uint8] | None = None,
) -> FaultResult:
    """Judge a fault in the file's input or its normalisation. `crop`: the right images, where `fed` are not cropped."""
    answers = _answers(path)
    row = _judged(fixture, answers(fed.astype(np.float32)))
    variants = {"squash for crop": crop} if crop is not None else None
    fault = diagnosis.name_fault(
        answers, fed, fixture.labels, fixture.top1, normalization=normalization, variants=variants, classes=CLASSES
    )
    return _result(name, row, fault.sentence() if fault else None, *expected)


def nothing(fixture: SelfTestFixture) -> FaultResult:
    """Run the control: the right input and per-channel int8, where nothing may be found."""
    path = fixture.folder / "control.int8.onnx"
    quantize(fixture.fp32, path, fixture.calibration, isa=isa() if isa() in TARGETS else "x86-vnni")
    row = _judged(fixture, Model.load(path).run(fixture.images))
    named = diagnosis.name_int8_fault(path)
    fault = diagnosis.name_fault(
        _answers(fixture.fp32),
        fixture.images,
        fixture.labels,
        fixture.top1,
        normalization=NORMALIZATION,
        classes=CLASSES,
    )
    named = named or (fault.sentence() if fault else None)
    good = row.verdict == "passed" and named is None
    return FaultResult(
        "nothing planted",
        good,
        f"{row.verdict} (drop {row.value:.1f} points); {named or 'no fault named'}",
        control=True,
    )


def itself(fixture: SelfTestFixture) -> FaultResult:
    """Compare a model with a copy of itself: no speed-up and no drop may be found.

    If other processes keep the machine busy, the speed-up is not judged.
    """
    # One run takes 20 microseconds, so many are needed.
    copy = fixture.folder / "copy.onnx"
    shutil.copyfile(fixture.fp32, copy)
    timed = export.runtime.latency.latency(
        {"model": fixture.fp32, "copy": copy}, fixture.images[:64], repeats=10 * TIMED_RUNS, rounds=40, attempts=3
    )
    ratio, low, high = export.runtime.latency_stats.speedup_with_interval(timed, "model", "copy")
    drop = paired_drop(fixture.correct, Model.load(copy).run(fixture.images).argmax(axis=1) == fixture.labels)
    # 95 in 100 intervals contain the true ratio; one that misses it by less than 1 % is no fault of the measurement.
    same = low <= 1 <= high or abs(ratio - 1) < 0.01
    good = None if not same and timed.contaminated else same
    detail = f"{ratio:.2f}x [{low:.2f}, {high:.2f}], drop {drop.drop_points:.2f} points"
    if good is None:
        detail += f"; the speed-up is not shown: {'; '.join(timed.disturbances)}"
    return FaultResult("a model against itself", good if drop.lost == drop.gained == 0 else False, detail, control=True)


def bgr(fixture: SelfTestFixture) -> FaultResult:
    """Exchange red and blue."""
    return _input(
        "BGR for RGB",
        fixture,
        fixture.fp32,
        np.ascontiguousarray(fixture.images[..., ::-1]),
        NORMALIZATION,
        "looks like BGR",
    )


def squash(fixture: SelfTestFixture) -> FaultResult:
    """Resize the whole image to a square, where the network was trained on its centre."""
    return _input(
        "squash for crop",
        fixture,
        fixture.fp32,
        fixture.squashed,
        NORMALIZATION,
        "looks like squash for crop",
        crop=fixture.images,
    )


def normalization(fixture: SelfTestFixture) -> FaultResult:
    """Write another mean and standard deviation into the file."""
    path = fixture.folder / "wrong.onnx"
    to_onnx(fixture.network, path, contract(WRONG_NORMALIZATION))
    return _input(
        "wrong mean and deviation",
        fixture,
        path,
        fixture.images,
        WRONG_NORMALIZATION,
        "looks like another normalisation",
        "(x / 255 - 0.5) / 0.5",
    )


def swapped(fixture: SelfTestFixture) -> FaultResult:
    """Exchange two classes in the list of names."""
    order = np.arange(len(CLASSES))
    order[[2, 5]] = order[[5, 2]]
    right = _answers(fixture.fp32)
    row = _judged(fixture, right(fixture.images.astype(np.float32))[:, order])
    fault = diagnosis.name_fault(
        lambda pixels: right(pixels)[:, order],
        fixture.images,
        fixture.labels,
        fixture.top1,
        normalization=NORMALIZATION,
        classes=CLASSES,
    )
    return _result(
        "swapped classes",
        row,
        fault.sentence() if fault else None,
        "looks like swapped classes",
        CLASSES[2],
        CLASSES[5],
    )


def per_tensor(fixture: SelfTestFixture) -> FaultResult:
    """Use one weight scale for all channels."""
    path = fixture.folder / "tensor.int8.onnx"
    quantize(
        fixture.fp32, path, fixture.calibration, isa="arm64" if isa() == "arm64" else "x86-vnni", per_channel=False
    )
    return _result(
        "per-tensor int8",
        _judged(fixture, Model.load(path).run(fixture.images)),
        diagnosis.name_int8_fault(path),
        "looks like per-tensor int8",
    )


def other_target(fixture: SelfTestFixture) -> FaultResult:
    """Time a file for another instruction set, whose speed here means nothing."""
    path, here = fixture.folder / "other.int8.onnx", isa()
    quantize(fixture.fp32, path, fixture.calibration, isa="x86-vnni" if here == "arm64" else "arm64")
    target = Model.load(path).target
    why = None if runs_on(target, here) else f"it is built for {target} and this machine is {here}"
    row = requirements.judge(Require(max_latency_ms=1000), Facts("student", "local", untimed=why))[0]
    return _result("a file for another instruction set", row, row.sentence, "built for", here)


def busy_neighbour(fixture: SelfTestFixture) -> FaultResult:
    """Measure the time while other processes run on every core.

    The limit is the best time that the machine reached without them, or with them if it was slower before.
    """
    quiet = float(
        export.runtime.latency.latency({"model": fixture.fp32}, fixture.images[:64], repeats=TIMED_RUNS)
        .models["model"]
        .samples_ms.min()
    )
    # About two seconds: the kernel counts other processes' time in ticks of 10 ms.
    repeats = max(TIMED_RUNS, round(2000 / max(quiet, 1e-3)))
    with _neighbours():
        timed = export.runtime.latency.latency({"model": fixture.fp32}, fixture.images[:64], repeats=repeats)
    if timed.contaminated is None:
        return FaultResult("a busy neighbour", None, "not shown: this system does not report what other processes use")
    value, low, high = export.runtime.latency_stats.p50_interval(timed, "model")
    facts = Facts(
        "student",
        "local",
        latency_ms=value,
        latency_ci95=(low, high),
        timed_runs=repeats,
        disturbed="; ".join(timed.disturbances) or None,
    )
    row = requirements.judge(Require(max_latency_ms=min(quiet, low)), facts)[0]
    return _result("a busy neighbour", row, facts.disturbed, "other processes used")


@contextmanager
def _neighbours() -> Iterator[None]:
    """Run one process on each core that does nothing but compute."""
    count = os.cpu_count() or 1
    started = [
        subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE)
        for _ in range(count)
    ]
    try:
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()  # it is running now
        yield
    finally:
        for process in started:
            process.kill()
            process.communicate()


FAULTS: tuple[Callable[[SelfTestFixture], FaultResult], ...] = (
    nothing,
    itself,
    bgr,
    squash,
    normalization,
    swapped,
    per_tensor,
    other_target,
    busy_neighbour,
)
