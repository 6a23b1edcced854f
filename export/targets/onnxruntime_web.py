"""The files of onnxruntime-web: from npm by the pinned lock file, cached for the user, or from a named folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from export.targets import Unreachable

_LOCK = Path(__file__).with_name("npm")
VERSION: str = json.loads((_LOCK / "package.json").read_text(encoding="utf-8"))["dependencies"]["onnxruntime-web"]
# The files of the package's dist that the page loads: each script with the module that it fetches.
FILES = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
NPM_SECONDS = 600


def cache() -> Path:
    """Return the folder that the files are cached in."""
    base = os.environ.get("XDG_CACHE_HOME") or (Path.home() / ".cache")
    return Path(base) / "compress" / f"onnxruntime-web-{VERSION}"


def folder(named: str | None, log: Callable[[str], None]) -> Path:
    """Return a folder with FILES: `named`, or the cache, filled by `npm ci` if it is empty. Raises Unreachable."""
    if named is not None:
        given = Path(named).expanduser()
        places = (given, given / "dist", given / "node_modules" / "onnxruntime-web" / "dist")
        found = next((place for place in places if _whole(place)), None)
        if found is None:
            raise Unreachable(
                f"browser: {given} does not hold onnxruntime-web ({FILES[0]} and others); "
                f"make it with: npm install onnxruntime-web@{VERSION}"
            )
        return found
    kept = cache()
    if not _whole(kept):
        log(f"browser: installing onnxruntime-web {VERSION} with npm into {kept}")
        _install(kept)
    return kept


def _whole(place: Path) -> bool:
    return all((place / name).is_file() for name in FILES)


def _install(kept: Path) -> None:
    """Run `npm ci` in a temporary folder, then move FILES alone into the cache in one step."""
    npm = shutil.which("npm")
    if npm is None:
        raise Unreachable(
            "browser: npm is not installed here, which brings onnxruntime-web; install it (Debian: apt-get install "
            "npm), or name the package's folder: --target 'browser?ort=/path/to/onnxruntime-web'"
        )
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as temporary:
        work = Path(temporary)
        for name in ("package.json", "package-lock.json"):
            shutil.copyfile(_LOCK / name, work / name)
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        try:
            done = subprocess.run(
                command,
                cwd=work,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=NPM_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Unreachable(
                f"browser: npm did not end within {NPM_SECONDS} seconds; "
                f"see why with: npm install onnxruntime-web@{VERSION}"
            ) from None
        dist = work / "node_modules" / "onnxruntime-web" / "dist"
        if done.returncode != 0 or not _whole(dist):
            said = [line for line in done.stderr.splitlines() if line.strip() and "complete log" not in line]
            why = said[0].removeprefix("npm error ").strip() if said else "no message"
            raise Unreachable(
                f"browser: npm could not install onnxruntime-web ({why}); "
                f"see why with: npm install onnxruntime-web@{VERSION}"
            )
        ready = work / "ready"
        ready.mkdir()
        for name in FILES:
            os.replace(dist / name, ready / name)
        shutil.rmtree(kept, ignore_errors=True)
        os.replace(ready, kept)
