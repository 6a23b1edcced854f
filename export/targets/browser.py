"""A browser as a device: the bundle's own page with onnxruntime-web, in headless Chromium on this machine.

The page runs the models and sends raw logits and raw times. They are judged here by the same functions as the answers
of any other device.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np

from export import runtime, verify
from export.runtime import answers, latency_stats, photos
from export.runtime.provider import describe_placement
from export.runtime.rounds import Attempt
from export.targets import (
    Address,
    DeviceFailed,
    Unreachable,
    VerifySettings,
    WrongTarget,
    browser_timing,
    chromium,
    loopback,
    onnxruntime_web,
)
from export.targets.unpack import unpacked

# onnxruntime's name of the provider.
WEBGPU = "WebGpuExecutionProvider"


@dataclass
class PageMessages:
    """What the page has sent so far, by provider.

    Attributes:
        logits: float32 (N, K) by provider and "<kind>/<file>".
        photos: decoded pixels uint8 of all photos, and the files that could not be decoded.
        attempts: attempts at timing.
        began: when the timing that is under way began.
        answer: one entry a provider; None until the page is done.
        error: the page's message if it failed.
        done: set when there is an answer or an error.
    """

    logits: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    photos: dict[str, tuple[np.ndarray, list[str]]] = field(default_factory=dict)
    attempts: dict[str, list[Attempt]] = field(default_factory=dict)
    began: browser_timing.TimingStart | None = None
    answer: list[dict[str, Any]] | None = None
    error: str | None = None
    done: threading.Event = field(default_factory=threading.Event)


def run(
    address: Address, bundle: Path, settings: VerifySettings, limit_seconds: float, log: Callable[[str], None]
) -> dict[str, Any]:
    """Return the browser's answer for a bundle (zip).

    Args:
        address: the target: program, folder of onnxruntime-web, provider.
        bundle: the zip.
        settings: how the models are run.
        limit_seconds: how long the page may take.
        log: receives a line about each step.

    Raises:
        Unreachable: there is no browser, no onnxruntime-web or no WebGPU.
        DeviceFailed: the page fails or does not answer.
        WrongTarget: a setting has no meaning in a browser.
    """
    if settings.sustained:
        raise WrongTarget("--target browser: --sustained does not work in a browser; leave it out")
    if settings.preprocess:
        raise WrongTarget(
            "--target browser: the page decodes photos with the browser's own decoder; leave --preprocess out"
        )
    binary = chromium.find(address.binary)
    dist = onnxruntime_web.folder(address.ort, log)
    with tempfile.TemporaryDirectory() as temporary:
        folder = unpacked(bundle, Path(temporary))
        try:
            verify.check_files(folder)
        except verify.Refused as error:
            raise DeviceFailed(f"{address.name}: {error}") from error
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if not (folder / "index.html").is_file():
            raise DeviceFailed(
                f"{address.name}: the bundle has no page; make it again with: compress run --force validate"
            )
        log(f"{address.name}: verifying with {Path(binary).name}")
        classes = len(manifest["classes"])
        messages = _run_page(address, settings, binary, {"bundle": folder, "ort": dist}, limit_seconds, classes)
        found = [_answer(entry, messages, folder, manifest, settings) for entry in messages.answer or []]
    return {**found[0], "also": found[1:]}


def _run_page(
    address: Address,
    settings: VerifySettings,
    binary: str,
    folders: dict[str, Path],
    limit_seconds: float,
    classes: int,
) -> PageMessages:
    """Serve the page, open it in the browser, and wait for its answer."""
    messages = PageMessages()
    processes: list[int] = []
    query: dict[str, int | str] = {"auto": 1, "threads": settings.threads, "repeats": settings.repeats}
    query["latency"] = int(settings.latency)
    if address.provider:
        query["provider"] = address.provider

    def receive(kind: str, parameters: dict[str, str], body: bytes) -> bytes:
        return _receive(messages, processes, classes, kind, parameters, body)

    with loopback.serving(folders, receive) as url:
        with chromium.opened(binary, f"{url}bundle/index.html?{urlencode(query)}") as (process, output):
            processes.append(process.pid)
            deadline = time.monotonic() + limit_seconds
            while not messages.done.wait(0.2):
                if process.poll() is not None:
                    raise DeviceFailed(
                        f"{address.name}: {Path(binary).name} ended with {process.returncode}: "
                        f"{chromium.last_line(output)}"
                    )
                if time.monotonic() > deadline:
                    raise DeviceFailed(f"{address.name}: the page did not answer within {limit_seconds:.0f} seconds")
    if messages.error is not None:
        kind = Unreachable if "no WebGPU adapter" in messages.error else DeviceFailed
        raise kind(f"{address.name}: {messages.error}")
    return messages


def _receive(
    messages: PageMessages, processes: list[int], classes: int, kind: str, parameters: dict[str, str], body: bytes
) -> bytes:
    """Store one message of the page; return the reply, which says whether to time again."""
    again = False
    if kind in ("logits", "photo-logits"):
        name = f"{kind}/{parameters['file']}"
        messages.logits[parameters["provider"], name] = np.frombuffer(body, "<f4").reshape(-1, classes)
    elif kind == "photos":
        broken = parameters.get("broken", "").split()
        messages.photos[parameters["provider"]] = np.frombuffer(body, np.uint8), broken
    elif kind == "begin":
        messages.began = browser_timing.begin(processes[0])
    elif kind == "rounds" and messages.began is not None:
        tried = messages.attempts.setdefault(parameters["provider"], [])
        tried.append(browser_timing.end(messages.began, json.loads(body)))
        again = browser_timing.disturbed(tried[-1]) and len(tried) < verify.ATTEMPTS
    elif kind in ("answer", "error"):
        messages.answer = json.loads(body) if kind == "answer" else None
        messages.error = body.decode(errors="replace") if kind == "error" else None
        messages.done.set()
    return json.dumps({"again": again}).encode()


class _KnownAnswers:
    """A stand-in for a loaded model whose logits the page has sent."""

    def __init__(self, logits: np.ndarray) -> None:
        self.logits = logits

    def run(self, images: np.ndarray) -> np.ndarray:
        """Return logits float32 (N, K) of the images that the page had."""
        return self.logits


def _models(messages: PageMessages, provider: str, kind: str, manifest: dict[str, Any]) -> dict[str, Any]:
    return {
        entry["file"]: _KnownAnswers(messages.logits[provider, f"{kind}/{entry['file']}"])
        for entry in manifest["models"]
    }


def _photos(
    messages: PageMessages, provider: str, folder: Path, manifest: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Check the photos as the browser's decoder decoded them."""
    if provider not in messages.photos:
        return photos.check(folder, {**manifest, "photos": None}, {})
    listed, (pixels, broken) = manifest["photos"], messages.photos[provider]
    names = [entry["file"] for entry in listed["pictures"]]
    decoded = dict(zip(names, pixels.reshape(-1, listed["crop"], listed["crop"], 3), strict=True))

    def decode(path: Path) -> tuple[np.ndarray, None]:
        name = path.relative_to(folder).as_posix()
        if name in broken:
            raise runtime.ExportError("the browser cannot decode it")
        return decoded[name].astype(np.float32), None

    models = _models(messages, provider, "photo-logits", manifest)
    return photos.check(folder, manifest, models, other=("the browser", decode))


def _answer(
    entry: dict[str, Any], messages: PageMessages, folder: Path, manifest: dict[str, Any], settings: VerifySettings
) -> dict[str, Any]:
    """Return what one provider answered, in the form of `export.verify`'s answer; `entry` is the page's own."""
    provider, about = entry["provider"], entry["host"]
    with np.load(folder / manifest["samples"]["file"], allow_pickle=False) as stored:
        samples = {name: stored[name] for name in stored.files}
    rows = answers.judge(_models(messages, provider, "logits", manifest), manifest["models"], samples, "web")
    seen, decoded = _photos(messages, provider, folder, manifest)
    answers.add_photos(rows, decoded)
    if provider == "webgpu":
        _add_webgpu_placement(rows, entry["models"])
    attempts = messages.attempts.get(provider, [])
    if attempts:
        first = {model["file"]: model["first_run_ms"] for model in entry["models"]}
        load = {model["file"]: model["load_ms"] for model in entry["models"]}
        digests = {model["file"]: model["sha256"] for model in manifest["models"]}
        result = latency_stats.summarize_attempts(attempts, about["threads"], first, load, digests)
        answers.add_latency(rows, result)
    why = None
    if not settings.latency:
        why = "--no-latency"
    elif provider == "webgpu" and about["webgpu"]["software"]:
        why = "a software adapter"
    return {
        "provider": provider,
        "host": _host(about),
        "onnxruntime": f"onnxruntime-web {about['onnxruntime_web']}, {provider}",
        "models": rows,
        "photos": seen,
        "not_timed": why,
        "file": answers.fitting(rows, "web"),
        "remarks": _remarks(provider, about["webgpu"], manifest),
        "ok": answers.all_right(rows, seen),
    }


def _add_webgpu_placement(rows: list[dict[str, Any]], models: list[dict[str, Any]]) -> None:
    """Write into each row which nodes WebGPU took, if onnxruntime-web's log shows it; pages of older bundles do not."""
    placed = {model["file"]: model.get("placed") or {"nodes": {}} for model in models}
    for row in rows:
        nodes = placed[row["file"]]["nodes"]
        if nodes:
            elsewhere = placed[row["file"]]["elsewhere"]
            total = sum(nodes.values())
            answers.add_placement(row, describe_placement(WEBGPU, nodes.get(WEBGPU, 0), total, None, elsewhere))


def _host(about: dict[str, Any]) -> dict[str, Any]:
    """Return the `host` entry: what the page reports of the browser, and this machine's processor."""
    here = runtime.host()
    return {
        "cpu": here["cpu"],
        "architecture": here["architecture"],
        "isa": "web",
        "cores": about["cores"],
        "memory_bytes": None,
        "os": f"{about['browser'] or about['user_agent']} on {about['platform']}",
        "python": None,
        "user_agent": about["user_agent"],
        "isolated": about["isolated"],
        "clock_step_ms": about["clock_step_ms"],
        "webgpu": about["webgpu"],
    }


def _remarks(provider: str, webgpu: dict[str, Any] | None, manifest: dict[str, Any]) -> list[str]:
    """Return sentences about what the numbers alone do not show."""
    remarks = answers.remarks(manifest)
    if webgpu is None:
        remarks.append("WebGPU: this browser gives no adapter, so only WebAssembly was run.")
    elif webgpu["software"]:
        kind = f"{webgpu['vendor']} {webgpu['architecture']}".strip()
        then = "so it was not run; ?provider=webgpu runs it without timing"
        if provider == "webgpu":
            then = "its time is not that of a GPU"
        remarks.append(f"WebGPU: only an adapter in software ({kind}), {then}.")
    precisions = {entry["precision"] for entry in manifest["models"]}
    if "int8" in precisions and not any(entry["target"] == "web" for entry in manifest["models"]):
        remarks.append(
            "No int8 file of the bundle is built for web (quantize.target: web makes one), so only the float files are "
            "judged."
        )
    return remarks
