"""The distribution of latencies, what integer arithmetic was worth, and how the host was meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compress.core.plural import plural
from compress.report.formats import is_number, significant
from compress.report.read import Source
from compress.report.schema import TimingSection
from compress.report.views import Drawing, drawing


@dataclass(frozen=True)
class LatencyView:
    """The plot, the gain of int8, and the conditions of the measurement."""

    drawing: Drawing | None
    gain: str
    conditions: Sequence[str]


def latency(source: Source, drawn: Mapping[str, str]) -> LatencyView | None:
    """Build the section; None where nothing was timed. `drawn`: SVG documents by name."""
    integers = source.report.int8_against_float
    gain = (integers.sentence if integers else None) or ""
    medians = [
        f"{name} {significant(float(np.median(values)))} ms" for name, values in source.latency.items() if values.size
    ]
    plot = drawing(drawn, "latency", f"Distribution of latencies; medians: {', '.join(medians)}")
    if plot is None and not gain:
        return None
    return LatencyView(plot, gain, _conditions(source.report.latency or TimingSection()))


def _conditions(timing: TimingSection) -> list[str]:
    """Return how the host was while time was measured, one sentence each."""
    sentences = []
    if timing.rounds is not None:
        load = timing.other_cores
        others = (
            f"other processes used {load:.2f} cores" if is_number(load) else "the load of other processes is not known"
        )
        tries = f", measured {timing.attempts} times because it was disturbed" if (timing.attempts or 1) > 1 else ""
        governor = timing.governor or "not shown by this host"
        sentences.append(f"{timing.rounds} rounds{tries}; {others}{_lost_runs(timing)}; clock governor: {governor}.")
    if timing.photo and timing.photo.pictures:
        photo = timing.photo
        sentences.append(f"Photo to answer: decoding ({photo.decoder}), resizing and inference of {photo.pictures}.")
    if timing.sustained and timing.sustained.sentence:
        sentences.append(timing.sustained.sentence)
    return sentences


def _lost_runs(timing: TimingSection) -> str:
    """Return how many runs were interrupted and left out."""
    lost = sum(timing.interrupted.values())
    if not lost or timing.unfit:
        return ""
    runs = plural(
        lost, "run that lost its core to other processes does", "runs that lost their core to other processes do"
    )
    return f"; {runs} not count"
