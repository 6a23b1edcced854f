"""A headless Chromium or Chrome on this machine: find it, start it on a page, end it with all its processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from export.targets import Unreachable

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
    # Linux keeps WebGPU behind this flag.
    "--enable-unsafe-webgpu",
)


def find(named: str | None) -> str:
    """Return the program's path: the one that the target names, or the first of BROWSERS. Raises Unreachable."""
    if named is not None:
        found = shutil.which(os.path.expanduser(named))
        if found is None:
            raise Unreachable(
                f"browser: {named} is not a program; name Chromium or Chrome: --target 'browser?binary=/path'"
            )
        return found
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        raise Unreachable(
            "browser: neither Chromium nor Chrome is installed here; install it (Debian: apt-get install chromium), "
            "or name it: --target 'browser?binary=/path'"
        )
    return found


@contextmanager
def opened(binary: str, url: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run the browser with a profile and a process session of its own, and end all its processes afterwards.

    Yields the process and the file that its output goes to.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # The sandbox refuses to run as root.
        root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        output = Path(profile) / "output.txt"
        command = [binary, *FLAGS, *root, f"--user-data-dir={profile}", url]
        with output.open("wb") as stream:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True
            )
        try:
            yield process, output
        finally:
            for wanted in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(process.pid, wanted)
                    process.wait(5)
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    pass


def last_line(output: Path) -> str:
    """Return the last line of the browser's output."""
    lines = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "no message"
