"""A browser as a device: the bundle's own page with onnxruntime-web, in headless Chromium on this machine.

The page runs the models and sends raw logits and raw times; they are judged here by the same functions as on any other device.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np

from export import runtime, verify
from export.runtime import answers, latency_stats, photos
from export.runtime.provider import told
from export.runtime.rounds import Attempt
from export.targets import (
    Address,
    DeviceFailed,
    Unreachable,
    VerifySettings,
    WrongTarget,
    browser_timing,
    loopback,
    onnxruntime_web,
)
from export.targets.unpack import unpacked

BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "microsoft-edge",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
FLAGS = (
    "--headless=new",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--metrics-recording-only",
    "--mute-audio",
    "--disable-dev-shm-usage",
    "--password-store=basic",
    "--enable-unsafe-webgpu",  # the last: Linux keeps WebGPU behind it
)

WEBGPU = "WebGpuExecutionProvider"  # onnxruntime's name


@dataclass
class Heard:
    """What the page has said so far, by provider: logits float32 (N, K) by kind and file, pixels uint8 of the photos, attempts at timing."""

    logits: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    photos: dict[str, tuple[np.ndarray, list[str]]] = field(default_factory=dict)  # and the files that were not decoded
    attempts: dict[str, list[Attempt]] = field(default_factory=dict)
    began: browser_timing.Began | None = None
    answer: list[dict[str, Any]] | None = None
    error: str | None = None
    done: threading.Event = field(default_factory=threading.Event)


def run(
    address: Address, bundle: Path, settings: VerifySettings, limit_seconds: float, log: Callable[[str], None]
) -> dict[str, Any]:
    """The browser's answer for a bundle (zip). Raises Unreachable, DeviceFailed, WrongTarget."""
    if settings.sustained:
        raise WrongTarget(
            "--target browser: a run without a pause (--sustained) is not made in a browser; leave it out"
        )
    if settings.preprocess:
        raise WrongTarget(
            "--target browser: the page decodes photos with the browser's own decoder, --preprocess has no place there"
        )
    binary = _binary(address)
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
        heard = _ask(
            address, settings, binary, {"bundle": folder, "ort": dist}, limit_seconds, len(manifest["classes"])
        )
        answers = [_answer(said, heard, folder, manifest, settings) for said in heard.answer or []]
    return {**answers[0], "also": answers[1:]}


def _binary(address: Address) -> str:
    if address.binary is not None:
        found = shutil.which(os.path.expanduser(address.binary))
        if found is None:
            raise Unreachable(
                f"browser: {address.binary} is no program; name Chromium or Chrome: --target 'browser?binary=/path'"
            )
        return found
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        raise Unreachable(
            "browser: neither Chromium nor Chrome is installed here; install it (Debian: apt-get install chromium), or name it: "
            "--target 'browser?binary=/path'"
        )
    return found


def _ask(
    address: Address,
    settings: VerifySettings,
    binary: str,
    folders: dict[str, Path],
    limit_seconds: float,
    classes: int,
) -> Heard:
    """Serve the page, open it in the browser, and wait for its answer."""
    heard = Heard()
    processes: list[int] = []
    query = {"auto": 1, "threads": settings.threads, "repeats": settings.repeats, "latency": int(settings.latency)}
    if address.provider:
        query["provider"] = address.provider  # type: ignore[assignment]
    with loopback.serving(folders, lambda kind, more, body: _hear(heard, processes, classes, kind, more, body)) as url:
        with _opened(binary, f"{url}bundle/index.html?{urlencode(query)}") as (process, log):
            processes.append(process.pid)
            deadline = time.monotonic() + limit_seconds
            while not heard.done.wait(0.2):
                if process.poll() is not None:
                    raise DeviceFailed(
                        f"{address.name}: {Path(binary).name} ended with {process.returncode}: {_last(log)}"
                    )
                if time.monotonic() > deadline:
                    raise DeviceFailed(f"{address.name}: the page did not answer within {limit_seconds:.0f} seconds")
    if heard.error is not None:
        kind = Unreachable if "no WebGPU adapter" in heard.error else DeviceFailed
        raise kind(f"{address.name}: {heard.error}")
    return heard


@contextmanager
def _opened(binary: str, url: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """The browser with a profile of its own, in a session of its own, ended with all its processes; and the file with what it says."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # its sandbox refuses root
        log = Path(profile) / "said.txt"
        command = [binary, *FLAGS, *root, f"--user-data-dir={profile}", url]
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True
            )
        try:
            yield process, log
        finally:
            for wanted in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(process.pid, wanted)
                    process.wait(5)
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    pass


def _last(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "no message"


def _hear(heard: Heard, processes: list[int], classes: int, kind: str, more: dict[str, str], body: bytes) -> bytes:
    """Take one message of the page; what it is told."""
    again = False
    if kind in ("logits", "photo-logits"):
        name = f"{kind}/{more['file']}"
        heard.logits[more["provider"], name] = np.frombuffer(body, "<f4").reshape(-1, classes)
    elif kind == "photos":
        heard.photos[more["provider"]] = np.frombuffer(body, np.uint8), more.get("broken", "").split()
    elif kind == "begin":
        heard.began = browser_timing.begin(processes[0])
    elif kind == "rounds" and heard.began is not None:
        tried = heard.attempts.setdefault(more["provider"], [])
        tried.append(browser_timing.end(heard.began, json.loads(body)))
        again = browser_timing.disturbed(tried[-1]) and len(tried) < verify.ATTEMPTS
    elif kind in ("answer", "error"):
        heard.answer = json.loads(body) if kind == "answer" else None
        heard.error = body.decode(errors="replace") if kind == "error" else None
        heard.done.set()
    return json.dumps({"again": again}).encode()


class _Said:
    """Stands for a loaded model whose answers are known already."""

    def __init__(self, logits: np.ndarray) -> None:
        self.logits = logits

    def run(self, images: np.ndarray) -> np.ndarray:
        """Logits float32 (N, K) of the pictures that the page had."""
        return self.logits


def _models(heard: Heard, provider: str, kind: str, manifest: dict[str, Any]) -> dict[str, Any]:
    return {entry["file"]: _Said(heard.logits[provider, f"{kind}/{entry['file']}"]) for entry in manifest["models"]}


def _photos(
    heard: Heard, provider: str, folder: Path, manifest: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """The photos' line: what the browser's decoder made of them."""
    if provider not in heard.photos:
        return photos.check(folder, {**manifest, "photos": None}, {})
    listed, (pixels, broken) = manifest["photos"], heard.photos[provider]
    every = dict(
        zip(
            (one["file"] for one in listed["pictures"]),
            pixels.reshape(-1, listed["crop"], listed["crop"], 3),
            strict=True,
        )
    )

    def decode(path: Path) -> tuple[np.ndarray, None]:
        name = path.relative_to(folder).as_posix()
        if name in broken:
            raise runtime.ExportError("the browser cannot decode it")
        return every[name].astype(np.float32), None

    return photos.check(
        folder, manifest, _models(heard, provider, "photo-logits", manifest), other=("the browser", decode)
    )


def _answer(
    said: dict[str, Any], heard: Heard, folder: Path, manifest: dict[str, Any], settings: VerifySettings
) -> dict[str, Any]:
    """What one provider said, in the form of `export.verify`'s answer."""
    provider, about = said["provider"], said["host"]
    with np.load(folder / manifest["samples"]["file"], allow_pickle=False) as stored:
        samples = {name: stored[name] for name in stored.files}
    rows = answers.judge(_models(heard, provider, "logits", manifest), manifest["models"], samples, "web")
    seen, decoded = _photos(heard, provider, folder, manifest)
    for row in rows:
        row.update(
            latency_ms=None,
            first_run_ms=None,
            load_ms=None,
            peak_memory_bytes=None,
            speedup_over={},
            photos=decoded.get(row["file"]),
        )
        row["provider"] = None
    placed = {
        one["file"]: one.get("placed") or {"nodes": {}} for one in said["models"]
    }  # pages of before it existed do not say
    for row in rows:
        if provider == "webgpu" and placed[row["file"]]["nodes"]:  # empty: onnxruntime-web's log did not say
            nodes, elsewhere = placed[row["file"]]["nodes"], placed[row["file"]]["elsewhere"]
            answers.add_placement(row, told(WEBGPU, nodes.get(WEBGPU, 0), sum(nodes.values()), None, elsewhere))
    attempts = heard.attempts.get(provider, [])
    if attempts:
        first = {one["file"]: one["first_run_ms"] for one in said["models"]}
        load = {one["file"]: one["load_ms"] for one in said["models"]}
        digests = {entry["file"]: entry["sha256"] for entry in manifest["models"]}
        answers.add_latency(rows, latency_stats.conclude(attempts, about["threads"], first, load, digests))
    webgpu = about["webgpu"]
    why = (
        "--no-latency"
        if not settings.latency
        else "a software adapter"
        if provider == "webgpu" and webgpu["software"]
        else None
    )
    judged = [row["ok"] for row in rows if row["ok"] is not None]
    here = runtime.host()
    return {
        "provider": provider,
        "host": {
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
            "webgpu": webgpu,
        },
        "onnxruntime": f"onnxruntime-web {about['onnxruntime_web']}, {provider}",
        "models": rows,
        "photos": seen,
        "not_timed": why,
        "file": answers.fitting(rows, "web"),
        "remarks": _remarks(provider, webgpu, manifest),
        "ok": bool(judged) and all(judged) and seen["ok"] is not False,
    }


def _remarks(provider: str, webgpu: dict[str, Any] | None, manifest: dict[str, Any]) -> list[str]:
    """What the numbers alone do not say."""
    remarks = []
    if webgpu is None:
        remarks.append("WebGPU: this browser gives no adapter, so only WebAssembly was run.")
    elif webgpu["software"]:
        kind = f"{webgpu['vendor']} {webgpu['architecture']}".strip()
        then = (
            "its time is not a graphics card's"
            if provider == "webgpu"
            else "so it was not run; ?provider=webgpu runs it without timing"
        )
        remarks.append(f"WebGPU: only an adapter in software ({kind}), {then}.")
    if not any(entry["target"] == "web" for entry in manifest["models"]) and any(
        entry["precision"] == "int8" for entry in manifest["models"]
    ):
        remarks.append(
            "No int8 file of the bundle is built for web (quantize.target: web makes one), so only the float files are judged."
        )
    return remarks
