"""The times and ratios that may be a headline: those of a measurement that is not called unfit."""

from __future__ import annotations

from compress.report.read import comparison_of, judged, teacher_row
from compress.report.schema import DeviceRow, LatencySummary, ModelRow, Report
from compress.report.schema.base import Number


def fit_latency(report: Report, row: ModelRow) -> Number | None:
    """Return a file's median latency on this host in ms.

    Where the stage `validate` calls its times unfit, the same bytes may have been timed fit when the bundle was
    verified here. Otherwise there is none.
    """
    if not _unfit(report):
        return (row.latency_ms or LatencySummary()).p50
    again = _verified(report, row)
    return again.latency_ms.p50 if again and again.latency_ms else None


def fit_speedup(report: Report, row: ModelRow) -> Number | None:
    """Return how many times as fast as the teacher a file is on this host; see `fit_latency`.

    A ratio of CPU time is fit. A limit may have been judged again since `validate` measured it; the latest value
    counts.
    """
    teacher = teacher_row(report).file
    if not _unfit(report) or (report.latency and report.latency.cpu_ratios):
        found = judged(report, "min_speedup", row.file)
        return comparison_of(report, row.file, teacher).speedup_p50 if found is None else found
    again = _verified(report, row)
    ratio = again.speedup_over.get(teacher or "") if again else None
    return ratio[0] if ratio else None


def _unfit(report: Report) -> bool:
    return report.latency is not None and report.latency.unfit is not None


def _verified(report: Report, row: ModelRow) -> DeviceRow | None:
    """Return the bundle's own measurement of the same bytes on this host, where it is fit."""
    return next(
        (
            one
            for one in report.device
            if (one.target, one.sha256) == ("local", row.sha256)
            and row.sha256
            and one.latency_ms
            and not (one.conditions and one.conditions.unfit)
        ),
        None,
    )
