"""An Android device behind adb. The argument lists are tested; nothing here was run on hardware.

Android has no Python of its own: the target names one that has numpy and onnxruntime, `adb://SERIAL?python=/path`.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from export.targets import Address, DeviceFailed, Unreachable
from export.targets.remote import Done, quoted

# The shell user may write and run here.
FOLDER = "/data/local/tmp/compress-verify"
_ABSENT = re.compile(
    r"device '.*' not found|device offline|unauthorized|no devices|device still|closed$|connection reset|"
    r"cannot connect",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Adb:
    """A link to one device."""

    address: Address

    def command(self, argv: list[str]) -> list[str]:
        """Return adb's command line. adb hands one line to the device's shell, so every argument is quoted for it."""
        return ["adb", "-s", self.address.host, "shell", "-T", quoted(argv)]

    def copy(self, files: list[Path], folder: str) -> list[str]:
        """Return adb's command line that copies files."""
        return ["adb", "-s", self.address.host, "push", *map(str, files), f"{folder}/"]

    def call(self, argv: list[str], limit_seconds: float) -> Done:
        """See `remote.Link`."""
        return self._run(self.command(argv), limit_seconds)

    def push(self, files: list[Path], folder: str, limit_seconds: float) -> str | None:
        """See `remote.Link`."""
        done = self._run(self.copy(files, folder), limit_seconds)
        if done.code == 0:
            return None
        return (done.err.strip().splitlines() or done.out.strip().splitlines() or ["no message"])[-1]

    def _run(self, command: list[str], limit_seconds: float) -> Done:
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit_seconds, check=False
            )
        except FileNotFoundError:
            raise Unreachable("adb is not installed here; install it with: apt-get install adb") from None
        except subprocess.TimeoutExpired:
            raise DeviceFailed(
                f"{self.address.name}: no answer within {limit_seconds:.0f} seconds; "
                "run the same command again to go on"
            ) from None
        err = done.stderr.decode(errors="replace")
        if done.returncode != 0 and _ABSENT.search(err):
            raise Unreachable(
                f"{self.address.name} cannot be reached ({err.strip().splitlines()[-1]}); see it with: adb devices"
            )
        return Done(done.returncode, done.stdout.decode(errors="replace"), err)
