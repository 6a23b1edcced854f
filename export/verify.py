"""Verify a bundle on the device it was copied to: every byte, every answer, and how long it takes.

`python -m export.verify [--json FILE] [--model NAME] [--threads N] [--repeats N] [--preprocess CMD] [--provider NAME]
[--no-latency] [--sustained SECONDS] [FOLDER]`. Two checks: the models, from pixels to logits, and the photos, from JPEG
files to logits. Needs only numpy and onnxruntime; Pillow, if it is installed, decodes the photos.
Exit codes: 0 all answers right · 2 usage · 3 something is missing · 4 changed files or wrong answers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

MISSING, WRONG = 3, 4
# A measurement that other processes disturb is repeated at most twice.
ATTEMPTS = 3


class Refused(Exception):
    """The verification cannot go on; carries a sentence and an exit code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class _Timing:
    """How the models are timed. `provider`: an execution provider; None: the CPU."""

    threads: int
    repeats: int
    provider: str | None
    sustained: int


def check_files(folder: Path, report: Path | None = None) -> int:
    """Compare the folder with its checksums and return how many files were read.

    `report`, the answer's own file, may lie in the folder. Raises Refused for changed, missing or additional files.
    """
    listing = folder / "checksums.sha256"
    if not listing.is_file():
        raise Refused(MISSING, f"{folder} is not a bundle: it has no checksums.sha256")
    expected = {}
    for line in listing.read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        expected[name] = digest
    ignored = {listing.resolve()} | ({report.resolve()} if report else set())
    there = [
        path for path in folder.rglob("*") if (path.is_file() or path.is_symlink()) and path.resolve() not in ignored
    ]
    names = {path.relative_to(folder).as_posix(): path for path in there}
    # Python writes these itself.
    found = {name: path for name, path in names.items() if not re.match(r"export/(runtime/)?__pycache__/", name)}
    for name in sorted(set(expected) - set(found)):
        raise Refused(WRONG, f"{name} is missing from the bundle: get the bundle again")
    for name in sorted(set(found) - set(expected)):
        raise Refused(WRONG, f"{name} does not belong to the bundle: remove it, or get the bundle again")
    for name, path in sorted(found.items()):
        if hashlib.sha256(path.read_bytes()).hexdigest() != expected[name]:
            raise Refused(WRONG, f"{name} was changed: its sha256 is not the one in checksums.sha256")
    return len(found)


def _place(folder: Path, rows: list[dict[str, Any]], images: np.ndarray, provider: str, threads: int) -> None:
    """Add to every row how much of the model runs in the requested provider; a model with no node there is wrong."""
    from export.runtime import answers
    from export.runtime.provider import measure_placement

    for row in rows:
        answers.add_placement(row, measure_placement(folder / row["file"], images, provider, threads))


def _time(folder: Path, rows: list[dict[str, Any]], images: np.ndarray, timing: _Timing) -> None:
    """Add latency, memory and speed ratios of the models that are meant for this machine."""
    from export.runtime import answers, latency

    files = [row["file"] for row in rows if row["ok"]]
    if not files:
        return
    result = latency.latency(
        {name: folder / name for name in files},
        images,
        threads=timing.threads,
        repeats=timing.repeats,
        attempts=ATTEMPTS,
        provider=timing.provider,
    )
    answers.add_latency(rows, result)
    for row in rows:
        if row["file"] in result.models:
            row["peak_memory_bytes"] = latency.memory(
                folder / row["file"], threads=timing.threads, provider=timing.provider
            )


def _time_shipped(
    folder: Path, row: dict[str, Any] | None, manifest: dict[str, Any], images: np.ndarray, timing: _Timing
) -> str:
    """Add a sustained run and the time from a photo to the answer to the row of the file for this machine.

    Returns what was timed of the latter, in words.
    """
    from export.runtime import photos
    from export.runtime.sustained import sustained

    if row is None or not row["ok"]:
        return "not timed, no right answers"
    path, threads, provider = folder / row["file"], timing.threads, timing.provider
    if timing.sustained:
        row["sustained"] = sustained(path, images, timing.sustained, threads=threads, provider=provider).summary()
    row["photo_latency_ms"], said = photos.time_to_answer(
        folder, manifest, row["file"], threads=threads, repeats=timing.repeats, provider=provider
    )
    return said


def verify(
    folder: Path,
    *,
    model: str | None = None,
    threads: int = 1,
    repeats: int = 700,
    report: Path | None = None,
    preprocess: str | None = None,
    latency: bool = True,
    provider: str | None = None,
    sustained: int = 0,
) -> dict[str, Any]:
    """Check a bundle and return everything that is known of it as JSON values.

    Args:
        folder: the unpacked bundle.
        model: only the model of this name.
        threads: intra-op threads.
        repeats: timed runs a model.
        report: the answer's own file, which may lie in the folder.
        preprocess: a command that decodes a photo.
        latency: whether to measure time and memory.
        provider: an execution provider, however it is written; None: the CPU.
        sustained: seconds to run the file for this machine without a pause.

    Raises:
        Refused: files were changed, or there is no such model.
        export.runtime.ExportError: a model cannot be run.
    """
    check_files(folder, report)
    import numpy as np

    from export import runtime
    from export.runtime import answers, photos
    from export.runtime.machine import emulated
    from export.runtime.provider import known, resolve

    provider = resolve(provider) if provider else None
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    entries = _chosen(manifest, model)
    host, emulation = runtime.host(), emulated()
    if emulation:
        host = {**host, "cpu": emulation}
    with np.load(folder / "samples.npz", allow_pickle=False) as stored:
        samples = {name: stored[name] for name in stored.files}
    models = {entry["file"]: runtime.Model.load(folder / entry["file"], threads, provider) for entry in entries}
    rows = answers.judge(models, entries, samples, host["isa"])
    seen, decoded = photos.check(folder, manifest, models, preprocess)
    answers.add_photos(rows, decoded)
    for row in rows:
        row.update(photo_latency_ms=None, sustained=None)
    file, photo = answers.fitting(rows, host["isa"]), "not timed"
    if provider:
        _place(folder, rows, samples["images"], provider, threads)
    if latency and not emulation:
        timing = _Timing(threads, repeats, provider, sustained)
        _time(folder, rows, samples["images"], timing)
        shipped = next((row for row in rows if row["file"] == file), None)
        photo = _time_shipped(folder, shipped, manifest, samples["images"], timing)
    why = "emulated" if emulation else None if latency else "--no-latency"
    if provider and not why and not any((row["provider"] or {})["nodes"] for row in rows):
        why = f"no node ran in {provider}"
    return {
        "host": host,
        "onnxruntime": host["onnxruntime"],
        "models": rows,
        "photos": seen,
        "not_timed": why,
        "file": file,
        "photo_to_answer": photo,
        "remarks": [*([f"{provider} {known(provider)}"] if provider else []), *answers.remarks(manifest)],
        "ok": answers.all_right(rows, seen),
    }


def _chosen(manifest: dict[str, Any], model: str | None) -> list[dict[str, Any]]:
    """Return the entries of the models to check. Raises Refused if there is none of that name."""
    entries = [entry for entry in manifest["models"] if model in (None, entry["file"], Path(entry["file"]).stem)]
    if not entries:
        names = ", ".join(entry["file"] for entry in manifest["models"])
        raise Refused(2, f"no model {model!r} in the bundle; it has {names}")
    return entries


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m export.verify", description="verify a bundle on this machine: files, answers, time"
    )
    parser.add_argument("folder", nargs="?", default=".", type=Path, metavar="FOLDER")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers")
    parser.add_argument("--model", metavar="NAME", help="only this model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=700, help="timed runs a model; p90 needs 64, p99 needs 662")
    parser.add_argument(
        "--preprocess",
        metavar="CMD",
        help="the application's decoder: gets a photo's path, writes RGB uint8 height x width x 3 to stdout",
    )
    parser.add_argument(
        "--provider",
        metavar="NAME",
        help="an execution provider of the installed onnxruntime, such as openvino; default: the CPU",
    )
    parser.add_argument("--no-latency", action="store_true", help="do not measure time and memory")
    parser.add_argument(
        "--sustained",
        type=int,
        default=0,
        metavar="SECONDS",
        help="also run the file for this machine for so long without a pause",
    )
    arguments = parser.parse_args(argv)
    if arguments.json and (arguments.json.is_dir() or not arguments.json.absolute().parent.is_dir()):
        # Better now than after minutes of measuring.
        parser.error(f"--json {arguments.json}: is no file in a folder that exists")
    if arguments.preprocess is not None:
        try:
            program = shlex.split(arguments.preprocess)[:1]
        except ValueError as error:
            parser.error(f"--preprocess {arguments.preprocess}: {error}")
        if not program or shutil.which(program[0]) is None:
            parser.error(f"--preprocess {arguments.preprocess}: there is no such command")
    if arguments.threads < 1 or arguments.repeats < 1 or arguments.sustained < 0:
        parser.error("--threads and --repeats must be at least 1, --sustained at least 0")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    arguments = _arguments(argv)
    try:
        import onnxruntime  # noqa: F401

        from export.runtime import ExportError, UnavailableError
        from export.runtime.answer_table import table
    except ImportError as error:
        print(f"{error.name} is not installed: python -m pip install -r requirements.txt", file=sys.stderr)
        return MISSING
    try:
        answer = verify(
            arguments.folder,
            model=arguments.model,
            threads=arguments.threads,
            repeats=arguments.repeats,
            report=arguments.json,
            preprocess=arguments.preprocess,
            latency=not arguments.no_latency,
            provider=arguments.provider,
            sustained=arguments.sustained,
        )
        if arguments.json:
            arguments.json.write_text(json.dumps(answer, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except Refused as error:
        print(error, file=sys.stderr)
        return error.code
    except UnavailableError as error:
        print(error, file=sys.stderr)
        return MISSING
    except (ExportError, OSError, ValueError, KeyError) as error:
        print(f"the bundle could not be verified: {error}", file=sys.stderr)
        return WRONG
    print(table(answer))
    return 0 if answer["ok"] else WRONG


if __name__ == "__main__":
    sys.dont_write_bytecode = True  # the bundle stays as it was shipped
    sys.exit(main())
