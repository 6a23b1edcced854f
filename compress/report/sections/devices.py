"""The page's part on devices: what each answered for the bundle, and under which conditions it was timed."""

from __future__ import annotations

from compress.report.formats import is_number
from compress.report.markup import Child, Html, el, facts, join, milliseconds, percent, section, size, table
from compress.report.read import Source
from compress.report.schema import DeviceRow, LatencySummary
from compress.report.schema.device import DeviceConditions
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
    answers = source.report.device
    failure = source.report.named_device.failure if source.report.named_device else None
    if not answers and not failure:
        return None
    lead = "The bundle, run by its own verifier, without this program."
    said = (
        el("p", f"The device that the recipe names gave no good answer: {failure}.", class_="said") if failure else None
    )
    targets = [answer.target or "device" for answer in answers]
    parts = (
        _target(target, [one for one, of in zip(answers, targets, strict=True) if of == target])
        for target in dict.fromkeys(targets)
    )
    return section("device", "Verified on the device", said, *parts, lead=lead)


def _target(target: str, answers: list[DeviceRow]) -> Html:
    """A device: what all its answers share once, the rest side by side, a column a file."""
    known = [dict(_known(answer)) for answer in answers]
    files = [answer.file or "" for answer in answers]
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


def _known(answer: DeviceRow) -> list[tuple[str, Child]]:
    """All that may be said of one answer, by name."""
    latency = answer.latency_ms or LatencySummary()
    return [
        ("Host", answer.host),
        ("CPU", answer.cpu),
        ("Cores", answer.cores),
        ("Memory", f"{answer.memory_bytes / 1e9:.1f} GB" if answer.memory_bytes else None),
        ("Python", answer.python),
        ("onnxruntime", answer.onnxruntime),
        ("Execution provider", answer.provider.sentence if answer.provider else None),
        ("Precision", answer.precision),
        ("Top-1 on the bundle's pictures", percent(answer.top1)),
        ("Agreement with the expected answers", percent(answer.agreement)),
        ("Largest logit difference", difference(answer.max_abs_diff)),
        *(
            (f"Latency {key}", milliseconds(value) if value else None)
            for key, value in (("p50", latency.p50), ("p90", latency.p90), ("p99", latency.p99))
        ),
        ("First run", milliseconds(answer.first_run_ms) if answer.first_run_ms else None),
        ("Load", milliseconds(answer.load_ms) if answer.load_ms else None),
        ("Peak memory", size(answer.peak_memory_bytes) if answer.peak_memory_bytes else None),
        ("Measured with", _measured_with(answer.conditions)),
        ("Disturbed", "; ".join(answer.disturbances)),
        ("Photo to answer", answer.photo_to_answer),
        ("Without a pause", answer.sustained.sentence if answer.sustained else None),
        ("Not timed", answer.not_timed),
        ("Photos", ((answer.photos.sentence if answer.photos else None) or "").removeprefix("photos: ")),
        ("Note", answer.note),
        ("Remarks", " ".join(answer.remarks)),
        ("sha256", el("code", answer.sha256[:12], title=answer.sha256) if answer.sha256 else None),
    ]


def _measured_with(known: DeviceConditions | None) -> str | None:
    """Under which conditions a device's times were taken."""
    if known is None:
        return None
    threads, load = known.threads, known.other_cores
    said = [
        f"{threads} {'thread' if threads == 1 else 'threads'}, {'spinning' if known.spinning else 'not spinning'}",
        f"{known.rounds} rounds in {known.attempts} {'attempt' if known.attempts == 1 else 'attempts'}",
        f"clock governor {known.governor or 'not shown'}",
        f"others used {load:.2f} cores" if is_number(load) else "load of others not known",
        ", ".join(known.cpu_features) if known.cpu_features else "",
    ]
    return "; ".join(part for part in said if part)
