"""The upper part of the page: the verdict, each requirement, what distillation was worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compress.core.plural import plural
from compress.report import formats
from compress.report.fit_times import fit_latency, fit_speedup
from compress.report.formats import is_number, milliseconds, percent, signed, significant, size
from compress.report.read import Source, comparison_of, judged, shipped, teacher_row
from compress.report.schema import ComparisonRow, GainSection, ModelRow, Report, RequirementRow
from compress.report.schema.base import Number
from compress.report.views import LimitBar, limit_bar
from compress.verdict.machine_text import machine_text

# Two measurements of one speed-up that are further apart than this are both shown.
DISAGREEMENT = 0.05
SIGNS = {"passed": "\u2713", "failed": "\u2715", "undecided": "?", "not judged": "?"}
STAMPS = {"passed": "Passed", "failed": "Failed", "undecided": "Undecided"}
TONES = {"passed": "passed", "failed": "failed", "undecided": "undecided", "not judged": "unjudged"}
# What each requirement asks, around its limit.
TITLES = {
    "max_top1_drop": "Top-1 drop at most {}",
    "min_top1": "Top-1 at least {}",
    "min_recall": "Recall of every class at least {}",
    "min_balanced_accuracy": "Balanced accuracy at least {}",
    "min_macro_f1": "Macro-F1 at least {}",
    "max_class_drop": "Top-1 drop of every class at most {}",
    "max_latency_ms": "Median latency at most {}",
    "min_speedup": "At least {} faster than the teacher",
    "min_int8_speedup": "int8 at least {} as fast as the float student",
    "max_bytes": "File at most {}",
    "min_compression": "At least {} smaller than the teacher",
    "max_memory_bytes": "Peak memory at most {}",
    "min_int8_mac_share": "Integer share of the arithmetic at least {}",
}
SHARES = ("min_top1", "min_recall", "min_balanced_accuracy", "min_macro_f1", "min_int8_mac_share")
UNITS = {
    "max_latency_ms": " ms",
    "min_speedup": "\u00d7",
    "min_int8_speedup": "\u00d7",
    "min_compression": "\u00d7",
}


@dataclass(frozen=True)
class Tile:
    """One of the large numbers; the small print below it is `detail`, `interval`, `after`."""

    name: str
    value: str
    detail: str = ""
    interval: str = ""
    after: str = ""


@dataclass(frozen=True)
class VerdictView:
    """The answer in one look."""

    tone: str
    sign: str
    stamp: str
    met: int
    requirements: int
    file: str
    others: str
    cautions: Sequence[str]
    warnings: str
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class RequirementView:
    """One requirement: what was asked, what was found, how far apart they are."""

    tone: str
    title: str
    sign: str
    verdict: str
    sentence: str
    where: str
    bar: LimitBar | None


@dataclass(frozen=True)
class DistillationView:
    """What the teacher was worth."""

    sentence: str
    model: str
    against: str
    test: str
    bar: LimitBar | None


def verdict(source: Source) -> VerdictView:
    """Build the verdict: stamp, how many requirements are met, at most four numbers."""
    report = source.report
    rows = report.requirements
    ship = shipped(report)
    number = len(report.warnings)
    return VerdictView(
        tone=TONES[report.status] if rows else "unjudged",
        sign=SIGNS[report.status] if rows else "\u2013",
        stamp=STAMPS[report.status] if rows else "Done",
        met=sum(row.verdict == "passed" for row in rows),
        requirements=len(rows),
        file=ship.file or "the student",
        others=_others(rows),
        cautions=report.cautions,
        warnings=plural(number, "warning") if number else "",
        tiles=_tiles(report, ship),
    )


def _others(rows: Sequence[RequirementRow]) -> str:
    """Return how many requirements are not met, by verdict."""
    counts = {name: sum(row.verdict == name for row in rows) for name in ("failed", "undecided", "not judged")}
    parts = [f"{number} {name}" for name, number in counts.items() if number]
    return f"; {', '.join(parts)}" if parts else ""


def _tiles(report: Report, ship: ModelRow) -> list[Tile]:
    """Build the student's numbers against the teacher's."""
    teacher = teacher_row(report)
    pair = comparison_of(report, ship.file, teacher.file)
    tiles = []
    if is_number(ship.top1):
        drop = pair.top1_drop_points
        tile = Tile("Top-1", str(percent(ship.top1)))
        if is_number(drop):
            detail = f"drop {signed(drop).lstrip('+')} "
            tile = Tile(tile.name, tile.value, detail, formats.interval(pair.top1_drop_ci95), " points")
        tiles.append(tile)
    if report.named_device and report.named_device.target:
        tiles.append(_device_tile(report, ship, teacher, report.named_device.target))
    elif is_number(speed := fit_speedup(report, ship)):
        tiles.append(_speed_tile(report, ship, pair, speed))
    if is_number(pair.size_ratio):
        sizes = f"{_or_not_measured(size(ship.bytes))}, teacher {_or_not_measured(size(teacher.bytes))}"
        tiles.append(Tile("Size", _times(pair.size_ratio, "smaller", "larger"), sizes))
    gain = report.distillation
    if gain and is_number(gain.gain_points):
        points = f"{signed(gain.gain_points)} points"
        tiles.append(Tile("Distillation", points, "", formats.interval(gain.ci95), " against no teacher"))
    return tiles


def _or_not_measured(text: str | None) -> str:
    return "not measured" if text is None else text


def _times(ratio: float, more: str, less: str) -> str:
    """Return `5.21x smaller`; below 1 the other way round, `2.93x larger`."""
    return f"{significant(ratio if ratio >= 1 else 1 / ratio)}\u00d7 {more if ratio >= 1 else less}"


def _speed_tile(report: Report, ship: ModelRow, pair: ComparisonRow, speed: Number) -> Tile:
    """Build the speed on this host."""
    fit = fit_latency(report, ship)
    latency = fit and (judged(report, "max_latency_ms", ship.file) or fit)
    first = pair.speedup_p50
    where = machine_text(report.environment.get("cpu"), report.environment.get("isa"))
    detail = f"{milliseconds(latency)} an image on this {where}" if latency else f"on this {where}"
    unfit = report.latency is not None and report.latency.unfit is not None
    if is_number(first) and not unfit and abs(speed / first - 1) > DISAGREEMENT:
        detail = f"{significant(first)}\u00d7 when it was validated"
    return Tile("Speed", _times(speed, "faster", "slower"), detail)


def _device_tile(report: Report, ship: ModelRow, teacher: ModelRow, named: str) -> Tile:
    """Build the speed on the device that the recipe names; this host's says nothing about it."""
    students = [
        row
        for row in report.device
        if (row.target, row.role, row.precision) == (named, "student", ship.precision) and row.latency_ms
    ]
    row = min(students, key=lambda row: row.built_for != row.isa, default=None)
    ratio = row.speedup_over.get(teacher.file or "") if row else None
    if row is None or row.latency_ms is None or not ratio:
        return Tile("Speed", "not measured", f"on {named}")
    latency = _or_not_measured(milliseconds(row.latency_ms.p50))
    return Tile("Speed", _times(ratio[0], "faster", "slower"), f"{latency} an image on {named}")


def requirements(source: Source) -> list[RequirementView] | None:
    """Build the requirements; None where the recipe sets none."""
    return [_requirement(row) for row in source.report.requirements] or None


def _requirement(row: RequirementRow) -> RequirementView:
    name = row.name or ""
    limit = _quantity(name, row.limit)
    digest = f"sha256 {row.sha256[:12]}" if row.sha256 else None
    title = TITLES.get(name, f"{name}: {{}}").replace("{}", limit)
    return RequirementView(
        tone=TONES[row.verdict],
        title=title.replace("every class", row.class_name) if row.class_name else title,
        sign=SIGNS[row.verdict],
        verdict=row.verdict,
        sentence=row.sentence or "",
        where=" \u00b7 ".join(text for text in (row.file, row.precision, row.target, digest, row.where) if text),
        bar=_requirement_bar(row, name, limit),
    )


def _requirement_bar(row: RequirementRow, name: str, limit: str) -> LimitBar | None:
    if not is_number(row.value) or not is_number(row.limit):
        return None
    ends = row.ci95
    spread = f", interval {_quantity(name, ends[0])} to {_quantity(name, ends[1])}" if ends else ""
    at_most = not name.startswith("min_")
    return limit_bar(
        row.value,
        ends,
        row.limit,
        at_most=at_most,
        mark=f"{'limit' if at_most else 'minimum'} {limit}",
        alt=f"{_quantity(name, row.value)}{spread}, limit {limit}: {row.verdict}",
        tone=TONES[row.verdict],
    )


def _quantity(name: str, value: Number | None) -> str:
    """Return a value of a requirement with its unit."""
    if not is_number(value):
        return "not measured"
    if name in ("max_top1_drop", "max_class_drop"):
        return f"{_short(round(value, 2))} points".replace("-", formats.MINUS)
    if name in SHARES:
        return f"{_short(100 * value)} %"
    if name.endswith("_bytes"):
        return str(size(value))
    return _short(value) + UNITS.get(name, "")


def _short(value: float) -> str:
    """Return three significant digits without trailing zeros."""
    text = significant(value)
    return text.rstrip("0").rstrip(".") if "." in text else text


def distillation(source: Source) -> DistillationView | None:
    """Build what the same student gained from the teacher; None without a baseline."""
    gain = source.report.distillation or GainSection()
    value = gain.gain_points
    if not gain.sentence and not is_number(value):
        return None
    both = bool(gain.model and gain.against)
    return DistillationView(
        sentence=formats.sentence_case(gain.sentence or f"distillation {signed(value or 0.0)} points"),
        model=gain.model or "" if both else "",
        against=gain.against or "" if both else "",
        test=f"; McNemar's exact p {formats.chance(gain.mcnemar_p)}" if is_number(gain.mcnemar_p) else "",
        bar=_gain_bar(gain),
    )


def _gain_bar(gain: GainSection) -> LimitBar | None:
    if not is_number(gain.gain_points):
        return None
    ends = gain.ci95
    spread = f", interval {signed(ends[0])} to {signed(ends[1])}" if ends else ""
    return limit_bar(
        gain.gain_points,
        ends,
        0.0,
        at_most=False,
        mark="no difference",
        alt=f"gain {signed(gain.gain_points)} points{spread}",
        tone="plain",
    )
