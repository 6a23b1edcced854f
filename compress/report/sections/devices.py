"""The page's part on devices: what each answered for the bundle, and under which conditions it was timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compress.core.plural import plural
from compress.report.formats import is_number, milliseconds, percent, size
from compress.report.read import Source
from compress.report.schema import DeviceRow, LatencySummary
from compress.report.schema.device import DeviceConditions
from compress.report.sections.models import difference
from compress.report.views import Cell, Table, cells

# These are too long for a column.
SENTENCES = (
    "Execution provider",
    "Measured with",
    "Disturbed",
    "Photo to answer",
    "Without a pause",
    "Not timed",
    "Photos",
    "Note",
    "Remarks",
)
EMPTY = Cell()


@dataclass(frozen=True)
class DeviceView:
    """One device: facts, and a table where several files ran on it."""

    title: str
    facts: Sequence[tuple[str, Cell]]
    table: Table | None = None


@dataclass(frozen=True)
class DevicesView:
    """All devices, and why the one that the recipe names gave no good answer."""

    failure: str
    devices: Sequence[DeviceView]


def devices(source: Source) -> DevicesView | None:
    """Build what each device answered for the bundle; None where none was asked."""
    answers = source.report.device
    named = source.report.named_device
    failure = (named.failure if named else None) or ""
    if not answers and not failure:
        return None
    targets = [answer.target or "device" for answer in answers]
    shown = [
        _device(target, [one for one, of in zip(answers, targets, strict=True) if of == target])
        for target in dict.fromkeys(targets)
    ]
    return DevicesView(failure, shown)


def _device(target: str, answers: Sequence[DeviceRow]) -> DeviceView:
    """Build one device: what all its answers share once, the rest side by side, a column a file."""
    known = [dict(_known(answer)) for answer in answers]
    files = [answer.file or "" for answer in answers]
    if len(answers) == 1:
        title = f"{target}, {files[0]}" if files[0] else target
        return DeviceView(title, [pair for pair in known[0].items() if pair[1] != EMPTY])
    shared: list[tuple[str, Cell]] = []
    rows: list[list[Cell]] = []
    for name in known[0]:
        values = [one[name] for one in known]
        if len(set(values)) == 1:
            shared.append((name, values[0]))
        elif name in SENTENCES:
            shared += [(f"{name}, {file}", value) for file, value in zip(files, values, strict=True)]
        else:
            rows.append([Cell(name), *(Cell("\u2013") if value == EMPTY else value for value in values)])
    table = Table(f"What {target} answered for each file", cells("", *files), rows) if rows else None
    return DeviceView(target, [pair for pair in shared if pair[1] != EMPTY], table)


def _known(answer: DeviceRow) -> list[tuple[str, Cell]]:
    """Return all that an answer holds, by name; empty cells are left out of the page."""
    latency = answer.latency_ms or LatencySummary()
    provider, sustained, photos = answer.provider, answer.sustained, answer.photos
    return [
        ("Host", _text(answer.host)),
        ("CPU", _text(answer.cpu)),
        ("Cores", _text(answer.cores)),
        ("Memory", _text(f"{answer.memory_bytes / 1e9:.1f} GB" if answer.memory_bytes else None)),
        ("Python", _text(answer.python)),
        ("onnxruntime", _text(answer.onnxruntime)),
        ("Execution provider", _text(provider.sentence if provider else None)),
        ("Precision", _text(answer.precision)),
        ("Top-1 on the bundle's images", Cell(percent(answer.top1))),
        ("Agreement with the expected answers", Cell(percent(answer.agreement))),
        ("Largest logit difference", difference(answer.max_abs_diff)),
        ("Latency p50", _text(milliseconds(latency.p50))),
        ("Latency p90", _text(milliseconds(latency.p90))),
        ("Latency p99", _text(milliseconds(latency.p99))),
        ("First run", _text(milliseconds(answer.first_run_ms))),
        ("Load", _text(milliseconds(answer.load_ms))),
        ("Peak memory", _text(size(answer.peak_memory_bytes))),
        ("Measured with", _text(_measured_with(answer.conditions))),
        ("Disturbed", _text("; ".join(answer.disturbances))),
        ("Photo to answer", _text(answer.photo_to_answer)),
        ("Without a pause", _text(sustained.sentence if sustained else None)),
        ("Not timed", _text(answer.not_timed)),
        ("Photos", _text(((photos.sentence if photos else None) or "").removeprefix("photos: "))),
        ("Note", _text(answer.note)),
        ("Remarks", _text(" ".join(answer.remarks))),
        ("sha256", Cell(answer.sha256[:12], code=True, title=answer.sha256) if answer.sha256 else EMPTY),
    ]


def _text(value: str | int | None) -> Cell:
    """Return a cell that is left out where there is no value."""
    return EMPTY if value is None else Cell(str(value))


def _measured_with(known: DeviceConditions | None) -> str | None:
    """Return under which conditions a device's times were taken."""
    if known is None:
        return None
    load = known.other_cores
    threads = plural(known.threads, "thread") if known.threads else "threads not known"
    parts = [
        f"{threads}, {'spinning' if known.spinning else 'not spinning'}",
        f"{plural(known.rounds or 0, 'round')} in {plural(known.attempts or 0, 'attempt')}",
        f"clock governor {known.governor or 'not shown'}",
        f"others used {load:.2f} cores" if is_number(load) else "load of others not known",
        ", ".join(known.cpu_features or []),
    ]
    return "; ".join(part for part in parts if part)
