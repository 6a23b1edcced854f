"""Checks a bundle on the device that it stands on: every byte, every answer, and the time that it takes.

`python -m export.verify [--json FILE] [--model NAME] [--threads N] [--repeats N] [--preprocess CMD] [--provider NAME]
[--no-latency] [--sustained SECONDS] [FOLDER]`. Two lines: "kernels", tensors in and logits out, and "photos", from JPEG files to logits. Needs
numpy and onnxruntime only; Pillow, where it is there, decodes the photos.
Exit codes: 0 all answers right · 2 usage · 3 something is missing · 4 changed files or wrong answers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

MISSING, WRONG = 3, 4
ATTEMPTS = 3  # a measurement that other processes disturb is repeated at most twice


class Refused(Exception):
    """Ends the verification with a sentence and an exit code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def check_files(folder: Path, report: Path | None = None) -> int:
    """Compare the folder with its checksums; returns how many files were read. Raises Refused on changed, missing or additional files."""
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
    found = {
        name: path for name, path in names.items() if not re.match(r"export/(runtime/)?__pycache__/", name)
    }  # Python's own copies
    for name in sorted(set(expected) - set(found)):
        raise Refused(WRONG, f"{name} is missing from the bundle: it is not the one that was made")
    for name in sorted(set(found) - set(expected)):
        raise Refused(WRONG, f"{name} does not belong to the bundle: remove it, or get the bundle again")
    for name, path in sorted(found.items()):
        if hashlib.sha256(path.read_bytes()).hexdigest() != expected[name]:
            raise Refused(WRONG, f"{name} was changed: its sha256 is not the one in checksums.sha256")
    return len(found)


def _place(folder: Path, rows: list[dict[str, Any]], images: np.ndarray, asked: str, threads: int) -> None:
    """Say of every model how much of it runs in the execution provider that was asked for; none of it is not what was asked for."""
    from export.runtime import answers, provider

    for row in rows:
        answers.add_placement(row, provider.place(folder / row["file"], images, asked, threads))


def _time(
    folder: Path, rows: list[dict[str, Any]], images: np.ndarray, threads: int, repeats: int, asked: str | None
) -> None:
    """Add latency, memory and speed ratios of the models that are meant for this machine."""
    from export.runtime import answers
    from export.runtime import latency as measure

    files = [row["file"] for row in rows if row["ok"]]
    if not files:
        return
    result = measure.latency(
        {name: folder / name for name in files},
        images,
        threads=threads,
        repeats=repeats,
        attempts=ATTEMPTS,
        provider=asked,
    )
    answers.add_latency(rows, result)
    for row in rows:
        if row["file"] in result.models:
            row["peak_memory_bytes"] = measure.memory(folder / row["file"], threads=threads, provider=asked)


def _time_shipped(
    folder: Path,
    shipped: list[dict[str, Any]],
    manifest: dict[str, Any],
    images: np.ndarray,
    threads: int,
    repeats: int,
    seconds: int,
    asked: str | None,
) -> str:
    """From a photo's bytes to the answer, and a run without a pause, of the file for this machine; what was timed of the first, in words."""
    from export.runtime import photos
    from export.runtime.sustained import sustained

    if not shipped or not shipped[0]["ok"]:
        return "not timed, no right answers"
    (row,) = shipped
    if seconds:
        row["sustained"] = sustained(folder / row["file"], images, seconds, threads=threads, provider=asked).summary()
    row["photo_latency_ms"], said = photos.time_to_answer(
        folder, manifest, row["file"], threads=threads, repeats=repeats, provider=asked
    )
    return said


def emulated() -> str | None:
    """What this processor is emulated on, as far as it shows: QEMU's user mode leaves the other processor's /proc/cpuinfo and its own name."""
    try:
        name = Path("/proc/self/comm").read_text(encoding="utf-8", errors="replace").strip()
        processor = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    foreign = platform.machine().lower() in ("aarch64", "arm64", "armv7l") and "vendor_id" in processor
    if not foreign and not name.startswith("qemu-"):
        return None
    model = next(
        (line.partition(":")[2].strip() for line in processor.splitlines() if line.startswith("model name")),
        "another processor",
    )
    return f"emulated on {model}"


def verify(
    folder: Path,
    *,
    model: str | None = None,
    threads: int = 1,
    repeats: int = 700,
    report: Path | None = None,
    preprocess: str | None = None,
    latency: bool = True,
    asked: str | None = None,
    sustained: int = 0,
) -> dict[str, Any]:
    """Everything that is known after the checks, as JSON values. `asked`: an execution provider. Raises Refused, or export.runtime.ExportError."""
    check_files(folder, report)
    import numpy as np

    from export import runtime
    from export.runtime import photos, provider
    from export.runtime.answers import fitting, judge

    asked = provider.resolve(asked) if asked else None
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    entries = [entry for entry in manifest["models"] if model in (None, entry["file"], Path(entry["file"]).stem)]
    if not entries:
        raise Refused(
            2, f"no model {model!r} in the bundle; it has {', '.join(entry['file'] for entry in manifest['models'])}"
        )
    host, emulation = runtime.host(), emulated()
    if emulation:
        host = {**host, "cpu": emulation}
    with np.load(folder / "samples.npz", allow_pickle=False) as stored:
        samples = {name: stored[name] for name in stored.files}
    models = {entry["file"]: runtime.Model.load(folder / entry["file"], threads, asked) for entry in entries}
    rows = judge(models, entries, samples, host["isa"])
    seen, decoded = photos.check(folder, manifest, models, preprocess)
    for row in rows:
        row.update(
            latency_ms=None,
            first_run_ms=None,
            load_ms=None,
            peak_memory_bytes=None,
            speedup_over={},
            photos=decoded.get(row["file"]),
        )
        row.update(provider=None, photo_latency_ms=None, sustained=None)
    file, photo = fitting(rows, host["isa"]), "not timed"
    if asked:
        _place(folder, rows, samples["images"], asked, threads)
    if latency and not emulation:
        _time(folder, rows, samples["images"], threads, repeats, asked)
        photo = _time_shipped(
            folder,
            [row for row in rows if row["file"] == file],
            manifest,
            samples["images"],
            threads,
            repeats,
            sustained,
            asked,
        )
    judged = [row["ok"] for row in rows if row["ok"] is not None]
    why = "emulated" if emulation else None if latency else "--no-latency"
    if asked and not why and not any((row["provider"] or {})["nodes"] for row in rows):
        why = f"no node ran in {asked}"
    return {
        "host": host,
        "onnxruntime": host["onnxruntime"],
        "models": rows,
        "photos": seen,
        "not_timed": why,
        "file": file,
        "photo_to_answer": photo,
        "remarks": [f"{asked} {provider.known(asked)}"] if asked else [],
        "ok": bool(judged) and all(judged) and seen["ok"] is not False,
    }


def _table(answer: dict[str, Any]) -> str:
    host = answer["host"]
    lines = [f"{host['cpu'] or host['architecture']} ({host['isa']}), onnxruntime {answer['onnxruntime']}"]
    lines.append(f"{'model':<32}{'top-1':>16}{'agreement':>11}{'max diff':>11}{'p50 ms':>9}{'MB RAM':>8}  verdict")
    for row in answer["models"]:
        top1 = f"{row['top1']:.1%} of {row['images']}"
        difference = "n/a" if row["max_abs_diff"] is None else f"{row['max_abs_diff']:.2g}"
        p50 = "n/a" if row["latency_ms"] is None else f"{row['latency_ms']['p50']:.3f}"
        memory = "n/a" if row["peak_memory_bytes"] is None else f"{row['peak_memory_bytes'] / 1e6:.0f}"
        verdict = row["note"] or ("ok" if row["ok"] else "WRONG ANSWERS")
        verdict += f"; {row['provider']['sentence']}" if row["provider"] and row["provider"]["nodes"] else ""
        lines.append(
            f"{row['file']:<32}{top1:>16}{row['agreement']:>11.1%}{difference:>11}{p50:>9}{memory:>8}  {verdict}"
        )
    if any(row.get("contaminated") for row in answer["models"]):
        lines.append("other processes were busy while the time was measured: run again on a quiet machine")
    if answer["not_timed"]:
        lines.append(f"time and memory were not measured ({answer['not_timed']})")
    lines += [answer["photos"]["sentence"], f"photo to answer: {answer['photo_to_answer']}", *answer["remarks"]]
    lines += [f"{row['file']}: {row['sustained']['sentence']}" for row in answer["models"] if row["sustained"]]
    if answer["file"]:
        lines.append(f"the file for this machine: {answer['file']}")
    if not any(row["ok"] is not None for row in answer["models"]):
        lines.append("no model here is meant for this machine: nothing was verified")
    return "\n".join(lines)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m export.verify", description="check a bundle on this machine: files, answers, time"
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
        help="also run the file for this machine so long without a pause",
    )
    arguments = parser.parse_args(argv)
    if arguments.json and (arguments.json.is_dir() or not arguments.json.absolute().parent.is_dir()):
        parser.error(f"--json {arguments.json}: is no file in a folder that exists")  # said before minutes of measuring
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
    """Run the command line; returns the exit code."""
    arguments = _arguments(argv)
    try:
        import onnxruntime  # noqa: F401

        from export.runtime import ExportError, UnavailableError
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
            asked=arguments.provider,
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
    print(_table(answer))
    return 0 if answer["ok"] else WRONG


if __name__ == "__main__":
    sys.dont_write_bytecode = True  # the bundle stays as it was shipped
    sys.exit(main())
