"""The page's part on devices: what each answered for the bundle, and under which conditions it was timed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress.report.markup import Child, Html, el, facts, is_number, join, milliseconds, percent, section, size, table
from compress.report.read import Source
from compress.report.sections.models import difference

# too long for a column
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


def devices(source: Source) -> Html | None:
    """What each device answered for the bundle."""
    answers = source.report.get("device") or []
    failure = (source.report.get("named_device") or {}).get("failure")
    if not answers and not failure:
        return None
    lead = "The bundle, run by its own verifier, without this program."
    said = (
        el("p", f"The device that the recipe names gave no good answer: {failure}.", class_="said") if failure else None
    )
    targets = [str(answer.get("target", "device")) for answer in answers]
    parts = (
        _target(target, [one for one, of in zip(answers, targets, strict=True) if of == target])
        for target in dict.fromkeys(targets)
    )
    return section("device", "Verified on the device", said, *parts, lead=lead)


def _target(target: str, answers: list[dict[str, Any]]) -> Html:
    """A device: what all its answers share once, the rest side by side, a column a file."""
    known = [dict(_known(answer)) for answer in answers]
    files = [str(answer.get("file") or "") for answer in answers]
    if len(answers) == 1:
        return join(
            [
                el("h3", f"{target}, {files[0]}" if files[0] else target),
                facts((name, value) for name, value in known[0].items() if value),
            ]
        )
    shared: list[tuple[str, Child]] = []
    rows: list[tuple[Child, ...]] = []
    for name in known[0]:
        values = [one[name] for one in known]
        if len({join(value).text for value in values}) == 1:
            shared.append((name, values[0]))
        elif name in SENTENCES:
            shared += [(f"{name}, {file}", value) for file, value in zip(files, values, strict=True)]
        else:
            rows.append((name, *(value or "\u2013" for value in values)))
    beside = table(f"What {target} answered for each file", ("", *files), rows) if rows else None
    return join([el("h3", target), facts((name, value) for name, value in shared if value), beside])


def _known(answer: dict[str, Any]) -> list[tuple[str, Child]]:
    """All that may be said of one answer, by name."""
    latency = answer.get("latency_ms") or {}
    return [
        ("Host", answer.get("host")),
        ("CPU", answer.get("cpu")),
        ("Cores", answer.get("cores")),
        ("Memory", f"{answer['memory_bytes'] / 1e9:.1f} GB" if answer.get("memory_bytes") else None),
        ("Python", answer.get("python")),
        ("onnxruntime", answer.get("onnxruntime")),
        ("Execution provider", (answer.get("provider") or {}).get("sentence")),
        ("Precision", answer.get("precision")),
        ("Top-1 on the bundle's pictures", percent(answer.get("top1"))),
        ("Agreement with the expected answers", percent(answer.get("agreement"))),
        ("Largest logit difference", difference(answer.get("max_abs_diff"))),
        *(
            (f"Latency {key}", milliseconds(latency[key]) if latency.get(key) else None)
            for key in ("p50", "p90", "p99")
        ),
        ("First run", milliseconds(answer["first_run_ms"]) if answer.get("first_run_ms") else None),
        ("Load", milliseconds(answer["load_ms"]) if answer.get("load_ms") else None),
        ("Peak memory", size(answer["peak_memory_bytes"]) if answer.get("peak_memory_bytes") else None),
        ("Measured with", _measured_with(answer.get("conditions") or {})),
        ("Disturbed", "; ".join(answer.get("disturbances") or [])),
        ("Photo to answer", answer.get("photo_to_answer")),
        ("Without a pause", (answer.get("sustained") or {}).get("sentence")),
        ("Not timed", answer.get("not_timed")),
        ("Photos", str((answer.get("photos") or {}).get("sentence") or "").removeprefix("photos: ")),
        ("Note", answer.get("note")),
        ("Remarks", " ".join(answer.get("remarks") or [])),
        ("sha256", el("code", answer["sha256"][:12], title=answer["sha256"]) if answer.get("sha256") else None),
    ]


def _measured_with(known: Mapping[str, Any]) -> str | None:
    """Under which conditions a device's times were taken."""
    if not known:
        return None
    threads, load = known.get("threads"), known.get("other_cores")
    said = [
        f"{threads} {'thread' if threads == 1 else 'threads'}, {'spinning' if known.get('spinning') else 'not spinning'}",
        f"{known.get('rounds')} rounds in {known.get('attempts')} {'attempt' if known.get('attempts') == 1 else 'attempts'}",
        f"clock governor {known.get('governor') or 'not shown'}",
        f"others used {load:.2f} cores" if is_number(load) else "load of others not known",
        ", ".join(known["cpu_features"]) if known.get("cpu_features") else "",
    ]
    return "; ".join(part for part in said if part)
