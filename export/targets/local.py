"""This machine as a device: its interpreter, which sees only the unpacked bundle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from export.targets import DeviceFailed, Unreachable, VerifySettings
from export.targets.unpack import unpacked


def run(
    bundle: Path, work: Path, settings: VerifySettings, limit_seconds: float, python: str | None = None
) -> dict[str, Any]:
    """Return the answer of `python -m export.verify` inside the unpacked bundle.

    Args:
        bundle: the zip.
        work: a folder that gets answer.json.
        settings: how the verifier runs.
        limit_seconds: how long it may take.
        python: another interpreter of this machine, which has numpy and an onnxruntime of its own.

    Raises:
        Unreachable: the interpreter cannot be run, or something is missing.
        DeviceFailed: the verifier fails or does not answer.
    """
    answer = (work / "answer.json").resolve()
    answer.unlink(missing_ok=True)  # it may belong to another bundle
    # PYTHONPATH and PYTHONSAFEPATH would put another `export` before the bundle's.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    with tempfile.TemporaryDirectory() as temporary:
        folder = unpacked(bundle, Path(temporary))
        command = [
            os.path.expanduser(python) if python else sys.executable,
            "-m",
            "export.verify",
            "--json",
            str(answer),
            *settings.arguments(),
            ".",
        ]
        try:
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, timeout=limit_seconds, check=False
            )
        except OSError as error:
            raise Unreachable(
                f"local: {python} cannot be run ({error.strerror}); name an interpreter: --target 'local?python=/path'"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise DeviceFailed(f"the bundle's verifier did not answer within {limit_seconds} seconds") from error
    if not answer.is_file():
        said = (done.stderr or done.stdout).strip().splitlines()
        if done.returncode == 3 and said:
            raise Unreachable(f"local: {said[-1]}")
        raise DeviceFailed(f"the bundle's verifier ended with {done.returncode}: {said[-1] if said else 'no message'}")
    content: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return content
