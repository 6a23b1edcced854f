"""The upper part of the page: the verdict, each requirement, what distillation was worth."""

from __future__ import annotations

from typing import Any

from compress.report.formats import chance, is_number, signed, significant
from compress.report.markup import Child, Html, bar, bracket, el, milliseconds, percent, section, size
from compress.report.read import Source, comparison_of, judged, shipped, speedup, teacher_row
from compress.report.schema import GainSection, LatencySummary, ModelRow, Report, RequirementRow

DISAGREE = 0.05  # two measurements of one speed-up that are further apart are both shown
SIGNS = {"passed": "\u2713", "failed": "\u2715", "undecided": "?", "not judged": "?"}
VERDICTS = {"passed": "Passed", "failed": "Failed", "undecided": "Undecided"}
# What each requirement asks, around its limit.
ASKED = {
    "max_top1_drop": "Top-1 drop at most {}",
    "min_top1": "Top-1 at least {}",
    "max_latency_ms": "Median latency at most {}",
    "min_speedup": "At least {} faster than the teacher",
    "min_int8_speedup": "int8 at least {} as fast as the float student",
    "max_bytes": "File at most {}",
    "min_compression": "At least {} smaller than the teacher",
    "max_memory_bytes": "Peak memory at most {}",
    "min_int8_mac_share": "Integer share of the arithmetic at least {}",
}


def verdict(source: Source) -> Html:
    """The answer, in one look: stamp, how many requirements, four numbers."""
    report = source.report
    status = report.status
    rows = report.requirements
    met = sum(row.verdict == "passed" for row in rows)
    ship = shipped(report)
    if rows:
        line: Child = [
            f"{met} of {len(rows)} requirements met by ",
            el("code", ship.file or "the student"),
            *_counts(rows),
        ]
    else:
        line = "The recipe sets no requirement (require:), so nothing was held against a limit."
    warnings = report.warnings
    link = f"{len(warnings)} {'warning' if len(warnings) == 1 else 'warnings'}"
    note = el("p", el("a", link, href="#warnings"), class_="under") if warnings else None
    sign, words = (SIGNS.get(status, "?"), VERDICTS.get(status, status)) if rows else ("\u2013", "Done")
    stamp = el("p", el("span", sign, class_="sign", aria_hidden="true"), words, class_="stamp")
    cautions = [el("p", text, class_="caution") for text in report.cautions]
    body = (el("h2", "Verdict", class_="unseen"), stamp, el("p", line), *cautions, note, _tiles(report, ship))
    return el("section", *body, id="verdict", class_=f"card verdict {_tone(status) if rows else 'unjudged'}")


def _tone(verdict: str) -> str:
    return {"passed": "passed", "failed": "failed", "undecided": "undecided"}.get(verdict, "unjudged")


def _counts(rows: list[RequirementRow]) -> list[str]:
    """What the others are, by number."""
    parts = [
        f"{n} {name}"
        for name in ("failed", "undecided", "not judged")
        if (n := sum(row.verdict == name for row in rows))
    ]
    return ["; " + ", ".join(parts) + "."] if parts else ["."]


def _tiles(report: Report, ship: ModelRow) -> Html | None:
    """The student's four numbers against the teacher's."""
    teacher = teacher_row(report)
    pair = comparison_of(report, ship.file, teacher.file)
    tiles: list[tuple[str, Child, Child]] = []
    if is_number(ship.top1):
        drop, interval = pair.top1_drop_points, pair.top1_drop_ci95
        against = ["drop ", signed(drop).lstrip("+"), " ", bracket(interval), " points"] if is_number(drop) else None
        tiles.append(("Top-1", percent(ship.top1), against))
    named = report.named_device.target if report.named_device else None
    if named:
        tiles += _device_tiles(report, ship, teacher, named)
    elif is_number(speed := speedup(report)):
        latency = judged(report, "max_latency_ms", ship.file) or (ship.latency_ms or LatencySummary()).p50
        first = pair.speedup_p50
        each: Child = [milliseconds(latency), " a picture"] if latency else None
        if is_number(first) and abs(speed / first - 1) > DISAGREE:
            each = [significant(first), "\u00d7 when it was validated"]
        tiles.append(("Speed", _times(speed, "faster", "slower"), each))
    if is_number(pair.size_ratio):
        sizes = [size(ship.bytes), ", teacher ", size(teacher.bytes)]
        tiles.append(("Size", _times(pair.size_ratio, "smaller", "larger"), sizes))
    gain = report.distillation or GainSection()
    if is_number(gain.gain_points):
        against = [bracket(gain.ci95), " against no teacher"]
        tiles.append(("Distillation", f"{signed(gain.gain_points)} points", against))
    if not tiles:
        return None
    pairs = [
        el("div", el("dt", name), el("dd", value, el("small", more) if more else None)) for name, value, more in tiles
    ]
    return el("dl", *pairs, class_="tiles")


def _times(ratio: float, more: str, less: str) -> str:
    """`5.21x smaller`; below 1 the other way round, `2.93x larger`."""
    return f"{significant(ratio if ratio >= 1 else 1 / ratio)}\u00d7 {more if ratio >= 1 else less}"


def _device_tiles(report: Report, ship: ModelRow, teacher: ModelRow, named: str) -> list[tuple[str, Child, Child]]:
    """The speed on the device that the recipe names; this machine's says nothing about it."""
    rows = [row for row in report.device if row.target == named]
    students = [row for row in rows if row.role == "student" and row.precision == ship.precision and row.latency_ms]
    row = min(students, key=lambda row: row.built_for != row.isa, default=None)
    ratio = row.speedup_over.get(teacher.file or "") if row else None
    if row is None or not ratio:
        return [("Speed", "not measured", [f"on {named}"])]
    return [
        (
            "Speed",
            _times(ratio[0], "faster", "slower"),
            [milliseconds((row.latency_ms or LatencySummary()).p50), f" a picture on {named}"],
        )
    ]


def requirements(source: Source) -> Html | None:
    """Each requirement: what was asked, what was found, how far apart they are."""
    rows = source.report.requirements
    if not rows:
        return None
    lead = "The thick mark is the limit, the dot the measured value, the line its 95 % interval; the shaded side meets the requirement."
    return section("requirements", "Requirements", el("ul", *map(_requirement, rows), class_="requirements"), lead=lead)


def _requirement(row: RequirementRow) -> Html:
    verdict, name = row.verdict, row.name or ""
    chip = el("span", SIGNS.get(verdict, "?"), " ", verdict, class_="chip")
    limit = _quantity(name, row.limit)
    title = ASKED.get(name, f"{name}: {{}}").replace("{}", limit)
    digest = f"sha256 {row.sha256[:12]}" if row.sha256 else None
    where = [str(item) for item in (row.file, row.precision, row.target, digest, row.where) if item]
    place = el("p", " \u00b7 ".join(where), class_="where") if where else None
    text = el("div", el("h3", title, chip), el("p", row.sentence), place)
    return el("li", text, _requirement_bar(row, name, limit), class_=_tone(verdict))


def _requirement_bar(row: RequirementRow, name: str, limit: str) -> Html | None:
    value = row.value
    if not is_number(value) or not is_number(row.limit):
        return None
    interval = row.ci95
    spread = f", interval {_quantity(name, interval[0])} to {_quantity(name, interval[1])}" if interval else ""
    alt = f"{_quantity(name, value)}{spread}, limit {limit}: {row.verdict}"
    at_most = not name.startswith("min_")
    return bar(
        value,
        interval,
        row.limit,
        at_most=at_most,
        mark=f"{'limit' if at_most else 'minimum'} {limit}",
        alt=alt,
        tone=_tone(row.verdict),
    )


def _quantity(name: str, value: Any) -> str:
    """A value of a requirement with its unit."""
    if not is_number(value):
        return "not measured"
    if name == "max_top1_drop":
        return f"{_short(round(value, 2))} points".replace("-", "\u2212")
    if name in ("min_top1", "min_int8_mac_share"):
        return f"{_short(100 * value)} %"
    if name.endswith("_bytes"):
        return str(size(value))
    return _short(value) + {
        "max_latency_ms": " ms",
        "min_speedup": "\u00d7",
        "min_int8_speedup": "\u00d7",
        "min_compression": "\u00d7",
    }.get(name, "")


def _short(value: float) -> str:
    """Three significant digits without trailing zeros."""
    text = significant(value)
    return text.rstrip("0").rstrip(".") if "." in text else text


def distillation(source: Source) -> Html | None:
    """What the teacher was worth: the same student with and without it."""
    gain = source.report.distillation or GainSection()
    value, interval = gain.gain_points, gain.ci95
    sentence = gain.sentence
    if not sentence and not is_number(value):
        return None
    picture = None
    if is_number(value):
        alt = f"gain {signed(value)} points" + (
            f", interval {signed(interval[0])} to {signed(interval[1])}" if interval else ""
        )
        picture = bar(value, interval, 0.0, at_most=False, mark="no difference", alt=alt, tone="plain")
    p = gain.mcnemar_p
    test = f"; McNemar's exact p {chance(p)}" if is_number(p) else ""
    files: list[Child] = (
        [": ", el("code", gain.model), " against ", el("code", gain.against)] if gain.model and gain.against else []
    )
    how = el(
        "p",
        "The same network, seed and epochs with and without the teacher, on the same test pictures",
        *files,
        test,
        ".",
        class_="quiet",
    )
    text = str(sentence or f"distillation {signed(value) if is_number(value) else ''} points")
    return section(
        "distillation",
        "What distillation was worth",
        el("p", text[:1].upper() + text[1:], class_="worth"),
        how,
        picture,
    )
