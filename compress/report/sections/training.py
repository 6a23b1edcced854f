"""The training curves: validation accuracy and losses, the baseline's beside the student's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compress.report.formats import percent
from compress.report.read import Source, method_of
from compress.report.views import Drawing, drawing

METRICS = {"top1": "top-1", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro-F1"}


@dataclass(frozen=True)
class TrainingView:
    """The plots."""

    lead: str
    drawings: Sequence[Drawing]


def training(source: Source, drawn: Mapping[str, str]) -> TrainingView | None:
    """Build the section; None without any history. `drawn`: SVG documents by name."""
    ends = [(curve.name, float(curve.top1[-1])) for curve in source.curves if curve.top1 is not None]
    last = [f"{name} {100 * top1:.1f} %" for name, top1 in ends if np.isfinite(top1)]
    plots = (
        drawing(drawn, "accuracy", f"Validation accuracy by epoch; at the end: {', '.join(last)}"),
        drawing(drawn, "loss", "Training losses by epoch of the student and the baseline"),
    )
    shown = [plot for plot in plots if plot is not None]
    if not shown:
        return None
    method, gpu = method_of(source.report), source.report.student.gpu
    how = f"Distilled with {method}{f' on {gpu}' if gpu else ''}. " if method else ""
    probe = source.report.student.probe_top1_validation
    floor = f" A last layer alone, on the pretrained features, reaches {percent(probe, 1)}." if probe else ""
    metric, epoch = source.report.student.metric, source.report.student.shipped_epoch
    chosen = f" Epoch {epoch} ships, the best by {METRICS.get(metric, metric)} on them." if metric else ""
    return TrainingView(f"{how}Accuracies are on images taken from the training set.{chosen}{floor}", shown)
