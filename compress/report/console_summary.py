"""The end of a run in a few lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from compress.report.fit_times import fit_latency, fit_speedup
from compress.report.formats import interval, percent
from compress.report.read import shipped
from compress.report.schema import ComparisonRow, Report, RequirementRow
from compress.report.schema.base import Number
from compress.verdict.machine_text import machine_text

WORST_CLASSES = 3  # named with their recall


def summary_lines(report: Report, folder: Path) -> Iterator[tuple[str, bool]]:
    """Yield lines, and whether each belongs to the verdict, which is printed even when quiet."""
    yield "", False
    for line in _table(report):
        yield line, False
    yield from ((line, False) for line in (*_time_lines(report), *_class_lines(report)))
    for part in (report.distillation, report.tuning, report.int8_against_float, report.ships):
        if part is not None and part.sentence:
            yield part.sentence, False
    for row in report.requirements:
        yield _requirement(row), True
    for sentence in report.cautions:
        yield f"{'caution':<11}{sentence}", True
    yield ending(report, folder), True


def ending(report: Report, folder: Path) -> str:
    """Return the last line: the verdict and where the report is."""
    rows = report.requirements
    met = sum(row.verdict == "passed" for row in rows)
    verdict = (
        f"{report.status}: {met} of {len(rows)} requirements met"
        if rows
        else "done: the recipe sets no requirement, so nothing was judged"
    )
    return f"{verdict}; report: {folder / 'report.html'}"


def _table(report: Report) -> list[str]:
    """Return one line a file: accuracy, drop, median latency, bytes."""
    pairs = {(pair.model, pair.against): pair for pair in report.comparisons}
    teacher = next((row.file for row in report.models if row.role == "teacher"), None)
    rows = [("file", "top-1", "95 %", "drop", "p50", "speed", "size")]
    for row in report.models:
        pair = pairs.get((row.file, teacher), ComparisonRow())
        rows.append(
            (
                str(row.file),
                _show(row.top1, "{:.2f} %", 100),
                f"{100 * row.top1_ci95[0]:.2f} to {100 * row.top1_ci95[1]:.2f}" if row.top1_ci95 else "-",
                _show(pair.top1_drop_points, "{:+.2f} points"),
                _show(fit_latency(report, row), "{:.3f} ms"),
                _show(fit_speedup(report, row) if row.role != "teacher" else None, "{:.2f}x"),
                _show(row.bytes, "{:,} bytes"),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]


def _time_lines(report: Report) -> Iterator[str]:
    """Yield which machine the times are of, or why there are none."""
    if report.latency is None or report.latency.rounds is None:
        return
    if report.latency.unfit:
        yield f"times that are unfit are left out: {report.latency.unfit}"
    if report.latency.cpu_ratios:
        yield f"speed is the ratio of CPU times of one thread: {report.latency.cpu_ratios}"
    if any(fit_latency(report, row) is not None for row in report.models):
        known = report.environment
        yield f"times are of this {machine_text(known.get('cpu'), known.get('isa'))}, not of another board"


def _class_lines(report: Report) -> Iterator[str]:
    """Yield the metrics that count every class alike, and the classes with the lowest recall."""
    rows = [row for row in report.per_class if row.n and row.right is not None]
    ship = shipped(report)
    if len(rows) < 2 or ship.balanced_accuracy is None or ship.macro_f1 is None:
        return
    balanced = f"{percent(ship.balanced_accuracy)} {interval(ship.balanced_accuracy_ci95, 100)}"
    f1 = f"{percent(ship.macro_f1)} {interval(ship.macro_f1_ci95, 100)}"
    yield f"{ship.file}: balanced accuracy {balanced}, macro-F1 {f1}"
    rows.sort(key=lambda row: row.student or 0.0)
    worst = [
        f"{row.name} {row.right} of {row.n} ({percent(row.student)} {interval(row.student_ci95, 100)})"
        for row in rows[:WORST_CLASSES]
    ]
    yield f"lowest recall: {', '.join(worst)}"


def _show(value: Number | None, form: str, scale: Number = 1) -> str:
    return "-" if value is None else form.format(value * scale if scale != 1 else value)


def _requirement(row: RequirementRow) -> str:
    """Return `passed     max_top1_drop: ...`; a limit that is not met names its line of the recipe."""
    sentence = row.sentence or f"{row.value} against a limit of {row.limit}"
    where = f" ({row.where})" if row.where and row.verdict != "passed" else ""
    name = f"{row.name}.{row.class_name}" if row.class_name else row.name
    return f"{row.verdict:<11}{name}: {sentence}{where}"
