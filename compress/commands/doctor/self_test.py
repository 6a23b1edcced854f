"""Faults planted on purpose, to show on this machine that the verdict catches them and names them: `compress doctor --verdict`.

The float file of a small network (planted_network.py) is the reference of every fault.
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
from compress.commands.doctor.self_test_network import CLASSES, RIGHT, Ground, contract, prepare
from compress.recipe.schema import Require
from compress.verdict import diagnosis, requirements
from compress.verdict.intervals import paired_drop
from export.graph.from_torch import to_onnx
from export.int8.quantize import quantize
from export.runtime import TARGETS, Model, isa, runs_on

WRONG = diagnosis.IMAGENET  # mean and deviation that are planted
LIMIT = 2.0  # points of top-1
RUNS = 300


@dataclass(frozen=True)
class Outcome:
    """What became of one planted fault. `caught` is None where this machine cannot show it (no /proc/stat)."""

    name: str
    caught: bool | None
    said: str
    control: bool = False  # nothing is planted, nothing may be found


def run(report: Callable[[Outcome], None]) -> bool:
    """Plant every fault, one after the other; whether all were caught (what cannot be shown here does not count)."""
    outcomes = []
    with tempfile.TemporaryDirectory() as temporary:
        ground = prepare(Path(temporary))
        for plant in PLANTED:
            outcomes.append(plant(ground))
            report(outcomes[-1])
    return all(outcome.caught is not False for outcome in outcomes)


def _answers(path: Path) -> diagnosis.Predict:
    """A file as `faults` wants it; it takes whole pixels, so others are rounded and cut."""
    model = Model.load(path)
    return lambda pixels: model.run(pixels.round().clip(0, 255).astype(np.uint8))


def _judged(ground: Ground, logits: NDArray[np.floating]) -> requirements.Requirement:
    """The verdict on answers to the test pictures, against the float file fed rightly."""
    drop = paired_drop(ground.correct, logits.argmax(axis=1) == ground.labels)
    return requirements.judge(Require(max_top1_drop=LIMIT), requirements.Facts("student", "local", drop=drop))[0]


def _outcome(name: str, row: requirements.Requirement, named: str | None, *expected: str) -> Outcome:
    """Caught: not passed, and named by all of the expected words."""
    caught = row.verdict != "passed" and named is not None and all(word in named for word in expected)
    drop = f" (drop {row.value:.1f} points)" if row.name == "max_top1_drop" and row.value is not None else ""
    return Outcome(name, caught, f"{row.verdict}{drop}; {named or 'not named'}")


def _input(
    name: str,
    ground: Ground,
    path: Path,
    fed: NDArray[np.uint8],
    normalization: diagnosis.Constants,
    *expected: str,
    crop: NDArray[np.uint8] | None = None,
) -> Outcome:
    """A fault in what the file is fed or expects. `crop`: the pictures prepared right, where `fed` was prepared otherwise."""
    answers = _answers(path)
    row = _judged(ground, answers(fed.astype(np.float32)))
    variants = {"squash for crop": crop} if crop is not None else None
    fault = diagnosis.name_fault(
        answers, fed, ground.labels, ground.top1, normalization=normalization, variants=variants, classes=CLASSES
    )
    return _outcome(name, row, fault.sentence() if fault else None, *expected)


def nothing(ground: Ground) -> Outcome:
    """The control: right input, per-channel int8; a verdict that cries wolf is worth nothing."""
    path = ground.folder / "control.int8.onnx"
    quantize(ground.fp32, path, ground.calibration, isa=isa() if isa() in TARGETS else "x86-vnni")
    row = _judged(ground, Model.load(path).run(ground.right))
    named = diagnosis.name_int8_fault(path)
    fault = diagnosis.name_fault(
        _answers(ground.fp32), ground.right, ground.labels, ground.top1, normalization=RIGHT, classes=CLASSES
    )
    named = named or (fault.sentence() if fault else None)
    good = row.verdict == "passed" and named is None
    return Outcome(
        "nothing planted",
        good,
        f"{row.verdict} (drop {row.value:.1f} points); {named or 'no fault named'}",
        control=True,
    )


def itself(ground: Ground) -> Outcome:
    """A model against a copy of itself: no speed-up, no drop. Where other processes never let the machine alone, the speed-up is not shown."""
    # so small a network needs many runs: one takes 20 millionths of a second
    copy = ground.folder / "copy.onnx"
    shutil.copyfile(ground.fp32, copy)
    timed = export.runtime.latency.latency(
        {"model": ground.fp32, "copy": copy}, ground.right[:64], repeats=10 * RUNS, rounds=40, attempts=3
    )
    ratio, low, high = export.runtime.latency_stats.ratio(timed, "model", "copy")
    drop = paired_drop(ground.correct, Model.load(copy).run(ground.right).argmax(axis=1) == ground.labels)
    # 95 in 100 intervals hold the truth; one that misses it by less than a hundredth is no error of the measurement
    same = low <= 1 <= high or abs(ratio - 1) < 0.01
    good = None if not same and timed.contaminated else same
    said = f"{ratio:.2f}x [{low:.2f}, {high:.2f}], drop {drop.drop_points:.2f} points"
    if good is None:
        said += f"; the speed-up is not shown: {'; '.join(timed.disturbances)}"
    return Outcome("a model against itself", good if drop.lost == drop.gained == 0 else False, said, control=True)


def bgr(ground: Ground) -> Outcome:
    """Red and blue exchanged."""
    return _input(
        "BGR for RGB", ground, ground.fp32, np.ascontiguousarray(ground.right[..., ::-1]), RIGHT, "looks like BGR"
    )


def squash(ground: Ground) -> Outcome:
    """The whole picture resized to a square, where the centre was learnt."""
    return _input(
        "squash for crop", ground, ground.fp32, ground.squashed, RIGHT, "looks like squash for crop", crop=ground.right
    )


def normalization(ground: Ground) -> Outcome:
    """Another mean and deviation in the file."""
    path = ground.folder / "wrong.onnx"
    to_onnx(ground.network, path, contract(WRONG))
    return _input(
        "wrong mean and deviation",
        ground,
        path,
        ground.right,
        WRONG,
        "looks like another normalisation",
        "(x / 255 - 0.5) / 0.5",
    )


def swapped(ground: Ground) -> Outcome:
    """Two classes exchanged in the list of names."""
    order = np.arange(len(CLASSES))
    order[[2, 5]] = order[[5, 2]]
    right = _answers(ground.fp32)
    row = _judged(ground, right(ground.right.astype(np.float32))[:, order])
    fault = diagnosis.name_fault(
        lambda pixels: right(pixels)[:, order],
        ground.right,
        ground.labels,
        ground.top1,
        normalization=RIGHT,
        classes=CLASSES,
    )
    return _outcome(
        "swapped classes",
        row,
        fault.sentence() if fault else None,
        "looks like swapped classes",
        CLASSES[2],
        CLASSES[5],
    )


def per_tensor(ground: Ground) -> Outcome:
    """One weight scale for all channels."""
    path = ground.folder / "tensor.int8.onnx"
    quantize(ground.fp32, path, ground.calibration, isa="arm64" if isa() == "arm64" else "x86-vnni", per_channel=False)
    return _outcome(
        "per-tensor int8",
        _judged(ground, Model.load(path).run(ground.right)),
        diagnosis.name_int8_fault(path),
        "looks like per-tensor int8",
    )


def other_target(ground: Ground) -> Outcome:
    """A file for another instruction set, whose speed here says nothing."""
    path, here = ground.folder / "other.int8.onnx", isa()
    quantize(ground.fp32, path, ground.calibration, isa="x86-vnni" if here == "arm64" else "arm64")
    target = Model.load(path).target
    why = None if runs_on(target, here) else f"it is built for {target} and this machine is {here}"
    row = requirements.judge(Require(max_latency_ms=1000), requirements.Facts("student", "local", untimed=why))[0]
    return _outcome("a file for another instruction set", row, row.sentence, "built for", here)


def busy_neighbour(ground: Ground) -> Outcome:
    """Other processes on every core while the time is measured; the limit is the best that the machine reached without them (or with them: it may have
    been slower before)."""
    quiet = float(
        export.runtime.latency.latency({"model": ground.fp32}, ground.right[:64], repeats=RUNS)
        .models["model"]
        .samples_ms.min()
    )
    # About two seconds: the kernel counts other processes' time in ticks of 10 ms.
    repeats = max(RUNS, round(2000 / max(quiet, 1e-3)))
    with _neighbours():
        timed = export.runtime.latency.latency({"model": ground.fp32}, ground.right[:64], repeats=repeats)
    if timed.contaminated is None:
        return Outcome("a busy neighbour", None, "not shown: this system does not tell what other processes use")
    value, low, high = export.runtime.latency_stats.p50_interval(timed, "model")
    facts = requirements.Facts(
        "student",
        "local",
        latency_ms=value,
        latency_ci95=(low, high),
        timed_runs=repeats,
        disturbed="; ".join(timed.disturbances) or None,
    )
    row = requirements.judge(Require(max_latency_ms=min(quiet, low)), facts)[0]
    return _outcome("a busy neighbour", row, facts.disturbed, "other processes used")


@contextmanager
def _neighbours() -> Iterator[None]:
    """One process a core that does nothing but compute."""
    count = os.cpu_count() or 1
    started = [
        subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE)
        for _ in range(count)
    ]
    try:
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()  # it runs
        yield
    finally:
        for process in started:
            process.kill()
            process.communicate()


PLANTED: tuple[Callable[[Ground], Outcome], ...] = (
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
