"""The text of a plan: its table, printed line by line, and its sentences. Works on plain values, without torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from compress.core.text import agree, plural
from compress.models import catalog

Row = dict[str, Any]
MARKS = {"teacher": "teacher", "student": "student", "choice": "choice", "neighbour": ""}
HEAD = ("", "MACs", "float32 p50", "int8 p50", "int8 against float32", "int8 file", "memory", "integer", "limits")
WIDTHS = (7, 8, 23, 23, 22, 10, 9, 8, 9)
LIMITS = {  # a requirement in words
    "max_latency_ms": "{:g} ms",
    "min_speedup": "{:g}x the teacher's speed",
    "min_int8_speedup": "int8 {:g}x as fast as float",
    "max_bytes": "{:,.0f} bytes",
    "min_compression": "a file {:g}x smaller than the teacher's",
    "max_memory_bytes": "{:,.0f} bytes of memory",
    "min_int8_mac_share": "{:.0%} integer arithmetic",
}


def name_of(model: str, width: float | None) -> str:
    """Return `shufflenet_v2 x0.5`; for a network without widths its name alone."""
    width = catalog.resolve_width(catalog.info(model), width)
    return model if width is None else f"{model} x{width:g}"


def header(names: Sequence[str]) -> str:
    """Return the head of the table for networks of these names."""
    return _cells("network", HEAD, names)


def line(row: Row, names: Sequence[str]) -> str:
    """Return the line of one network."""
    int8 = row["int8"]
    files = int8 or row["fp32"]
    cells = (
        MARKS[row["role"]],
        "-" if row["macs"] is None else _short(row["macs"]),
        _time(row["fp32"]["latency_ms"]),
        _time(int8["latency_ms"]) if int8 else "-",
        f"{_ratio(row['int8_speedup'], row['int8_speedup_ci95'])} {_worth(row)}".strip()
        if row["int8_speedup"]
        else "-",
        f"{_short(int8['bytes'])}B" if int8 else "-",
        "-" if files["peak_memory_bytes"] is None else f"{_short(files['peak_memory_bytes'])}B",
        f"{100 * int8['int8_mac_share']:.1f} %" if int8 and int8["int8_mac_share"] is not None else "-",
        row["status"] if row.get("requirements") else "-",
    )
    return _cells(row["name"], cells, names)


def _cells(name: str, cells: Sequence[str], names: Sequence[str]) -> str:
    """Align the role to the left and numbers to the right."""
    widest = max(len("network"), *(len(one) for one in names))
    numbers = (cell.rjust(width) for cell, width in zip(cells[1:], WIDTHS[1:], strict=True))
    return "  ".join((name.ljust(widest), cells[0].ljust(WIDTHS[0]), *numbers))


def sentences(plan: dict[str, Any]) -> Iterator[str]:
    """Put the table into sentences: what int8 gains, who meets which limit, what training alone can show."""
    rows = [row for row in plan["networks"] if row["role"] != "teacher"]
    where = place(plan["device"])
    yield from (row["ships_as"] for row in rows if row.get("ships_as"))
    timed = [row for row in rows if row["int8_speedup"] is not None]
    for row in timed:
        if _worth(row):
            floats = f"; in float inside int8: {', '.join(row['int8']['islands'])}" if row["int8"]["islands"] else ""
            how = (
                f"slower than float32 {where}"
                if _worth(row) == "slower"
                else f"no faster than float32 {where}, within noise"
            )
            kept = ", so float32 would ship (quantize.keep)" if row["ships"] == "fp32" else ""
            speed = f"{_ratio(row['int8_speedup'], row['int8_speedup_ci95'])} its speed"
            yield f"{row['name']}: int8 is {how}, {speed}{kept}{floats}."
    faster = [row["name"] for row in timed if not _worth(row)]
    if faster:
        yield f"int8 is faster than float32 {where}: {_list(faster)}."
    if any(row["int8"] and row["int8"]["latency_ms"] is None for row in rows):
        target, here = rows[0]["int8"]["target"], plan["host"].get("isa")
        advice = "name the device in device.target, or run the plan on it"
        yield f"int8 files for {target} are not timed on this machine ({here}); {advice}."
    yield from _limits(rows)
    if plan["choose"]:
        yield plan["choose"]["sentence"]
    if plan["not_judged"]:
        yield f"{_list(plan['not_judged'])} cannot be judged before training."
    disturbed = [row for row in plan["networks"] if row["disturbances"]]
    if disturbed:
        busiest = max(row["other_cores"] or 0.0 for row in disturbed)
        yield (
            f"{len(disturbed)} of {len(plan['networks'])} measurements were disturbed "
            f"(other processes used up to {busiest:.2f} cores): times may be too long; ratios come from turns within "
            "rounds and suffer less; measure again on a quiet machine with --force."
        )
    doubtful = [row for row in plan["networks"] if row["unfit"]]
    if doubtful:
        others = _and_others(len(doubtful) - 1)
        yield f"{doubtful[0]['name']}: {doubtful[0]['unfit']}: times are too long and ratios doubtful{others}."


def _and_others(count: int) -> str:
    return f", and so are those of {plural(count, 'other')}" if count else ""


def _limits(rows: list[Row]) -> Iterator[str]:
    """Yield one sentence a limit: `shufflenet_v2 x0.5 meets 3 ms (max_latency_ms); shufflenet_v2 x1 does not.`."""
    for index, limit in enumerate(rows[0]["requirements"] if rows else []):
        by_verdict: dict[str, list[str]] = {}
        for row in rows:
            by_verdict.setdefault(row["requirements"][index]["verdict"], []).append(row["name"])
        met, missed = by_verdict.pop("passed", []), by_verdict.pop("failed", [])
        what = f"{LIMITS[limit['name']].format(limit['limit'])} ({limit['name']})"
        parts = [f"{_list(met)} {agree(len(met), 'meets', 'meet')} {what}"] if met else [f"none is sure to meet {what}"]
        parts += [f"{_list(missed)} {agree(len(missed), 'does', 'do')} not"] if missed else []
        parts += [f"{verdict}: {_list(names)}" for verdict, names in by_verdict.items()]
        yield "; ".join(parts) + "."


def place(device: str) -> str:
    """Return `here`, or `on ssh://pi@board.local`."""
    return "here" if device == "local" else f"on {device}"


def choice(listed: list[Row], chosen: Row | None, budget_ms: float, where: str = "here") -> str:
    """Return in one sentence what `student.choose` picks and why.

    Args:
        listed: The rows of the networks to choose from.
        chosen: The row of the one that was picked; None: all are too slow.
        budget_ms: `max_latency_ms`.
        where: See `place`.
    """

    def end(row: Row) -> float:
        return float(row[row["ships"]]["latency_ms"]["p50_ci95"][1])

    if chosen is None:
        fastest = min(listed, key=end)
        latency = fastest[fastest["ships"]]["latency_ms"]
        return (
            f"student.choose: no network of the list meets {budget_ms:,g} ms {where}; "
            f"the fastest is {fastest['name']} with {_time(latency)} ms: raise max_latency_ms or list smaller networks"
        )
    larger = [row["name"] for row in listed if (row["macs"], row["params"]) > (chosen["macs"], chosen["params"])]
    why = f"; {_list(larger)} {agree(len(larger), 'is', 'are')} too slow" if larger else ""
    latency = chosen[chosen["ships"]]["latency_ms"]
    there = "" if where == "here" else f" {where}"
    within = f"the largest of {len(listed)} within {budget_ms:,g} ms{there} ({_time(latency)} ms)"
    return f"student: {chosen['name']}, {within}{why}."


def _worth(row: Row) -> str:
    """Return `slower`, `same`, or "" for faster: int8 against float32, by the interval."""
    low, high = row["int8_speedup_ci95"]
    return "slower" if high < 1 else "same" if low <= 1 else ""


def _time(latency: dict[str, Any] | None) -> str:
    """Format milliseconds: `0.412 [0.405, 0.421]`."""
    if latency is None:
        return "not here"
    return f"{latency['p50']:.3g} [{latency['p50_ci95'][0]:.3g}, {latency['p50_ci95'][1]:.3g}]"


def _ratio(value: float, interval: Sequence[float]) -> str:
    return f"{value:.2f}x [{interval[0]:.2f}, {interval[1]:.2f}]"


def _short(number: float) -> str:
    """Format a number with three digits and a unit: 6.52 M."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number:g} "


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
