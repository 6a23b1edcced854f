"""The end of a run in a few lines of text, from the content of report.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def summary_lines(report: Mapping[str, Any], folder: Path) -> Iterator[tuple[str, bool]]:
    """Lines and whether each belongs to the verdict, which is said even when quiet."""
    yield "", False
    for row in _table(report):
        yield row, False
    for key in ("distillation", "tuning", "int8_against_float", "ships"):
        sentence = (report.get(key) or {}).get("sentence")
        if sentence:
            yield sentence, False
    rows = report.get("requirements") or []
    for row in rows:
        yield _requirement(row), True
    for sentence in report.get("cautions") or []:
        yield f"{'caution':<11}{sentence}", True
    yield ending(report, folder), True


def ending(report: Mapping[str, Any], folder: Path) -> str:
    """The last line: the verdict and where the report is."""
    rows = report.get("requirements") or []
    met = sum(row.get("verdict") == "passed" for row in rows)
    said = (
        f"{report['status']}: {met} of {len(rows)} requirements met"
        if rows
        else "done: the recipe sets no requirement, so nothing was judged"
    )
    return f"{said}; report: {folder / 'report.html'}"


def _table(report: Mapping[str, Any]) -> list[str]:
    """One line a model: accuracy, drop, median latency, bytes."""
    pairs = {(pair.get("model"), pair.get("against")): pair for pair in report.get("comparisons") or []}
    teacher = next((row.get("file") for row in report.get("models") or [] if row.get("role") == "teacher"), None)
    rows = [("file", "top-1", "95 %", "drop", "p50", "speed", "size")]
    for row in report.get("models") or []:
        pair = pairs.get((row.get("file"), teacher), {})
        low, high = row.get("top1_ci95") or (None, None)
        rows.append(
            (
                str(row.get("file")),
                _show(row.get("top1"), "{:.2f} %", 100),
                "-" if low is None or high is None else f"{100 * low:.2f} to {100 * high:.2f}",
                _show(pair.get("top1_drop_points"), "{:+.2f} points"),
                _show((row.get("latency_ms") or {}).get("p50"), "{:.3f} ms"),
                _show(pair.get("speedup_p50"), "{:.2f}x"),
                _show(row.get("bytes"), "{:,} bytes"),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]


def _show(value: Any, form: str, scale: float = 1) -> str:
    return "-" if value is None else form.format(value * scale if scale != 1 else value)


def _requirement(row: Mapping[str, Any]) -> str:
    """`passed     max_top1_drop: ...`; a limit that is not met names its line of the recipe."""
    said = row.get("sentence") or f"{row.get('value')} against a limit of {row.get('limit')}"
    where = f" ({row['where']})" if row.get("where") and row.get("verdict") != "passed" else ""
    return f"{row.get('verdict', 'not judged'):<11}{row.get('name')}: {said}{where}"
