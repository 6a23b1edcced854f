"""What was measured about the file that ships: the ground on which its requirements are judged."""

from __future__ import annotations

from dataclasses import dataclass

from compress.verdict.class_requirements import ClassCounts
from compress.verdict.intervals import PairedDrop
from compress.verdict.judgement import Interval


@dataclass(frozen=True)
class Facts:
    """What was measured about the file that ships. None: not measured."""

    file: str
    # Where time and memory were measured.
    target: str
    # Against the float teacher.
    drop: PairedDrop | None = None
    # Right answers out of `images` test images.
    correct: int | None = None
    images: int | None = None
    # One entry a class; empty: not measured.
    classes: tuple[ClassCounts, ...] = ()
    balanced_accuracy: float | None = None
    balanced_accuracy_ci95: Interval | None = None
    macro_f1: float | None = None
    macro_f1_ci95: Interval | None = None
    # Groups of the test images, with the interval of top-1 that follows from them; None: the images are independent.
    groups: int | None = None
    top1_ci95: Interval | None = None
    # Median latency of one image, with its interval over rounds.
    latency_ms: float | None = None
    latency_ci95: Interval | None = None
    timed_runs: int | None = None
    # Times the teacher's speed, from ratios within rounds.
    speedup: float | None = None
    speedup_ci95: Interval | None = None
    # The int8 file's speed over the float student's, from ratios within rounds.
    int8_speedup: float | None = None
    int8_speedup_ci95: Interval | None = None
    bytes: int | None = None
    teacher_bytes: int | None = None
    peak_memory_bytes: int | None = None
    int8_mac_share: float | None = None
    # Why the timing is noisy, such as "other processes used 40 % of a core".
    disturbed: str | None = None
    # Why times are too long and ratios wrong in every round alike; see `export.runtime.rounds.drop_interrupted`.
    unfit: str | None = None
    # Why ratios are those of CPU time, and so fit. Where it was measured: "on this AMD EPYC with VNNI, not on ...".
    cpu_ratios: str | None = None
    machine: str | None = None
    # Why the file could not be timed, such as "it is built for arm64 and this machine is x86-vnni".
    untimed: str | None = None
    sha256: str | None = None
    precision: str | None = None
