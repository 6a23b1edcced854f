"""A device behind OpenSSH, reached with the system's ssh and scp and the user's keys and known hosts."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from export.targets import Address, DeviceFailed, Unreachable
from export.targets.remote import Done, quoted

# No questions, no unknown hosts, no waiting for a dead connection.
SETTINGS = (
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "ConnectTimeout=10",
    "ServerAliveInterval=10",
    "ServerAliveCountMax=3",
    "ForwardAgent=no",
    "ForwardX11=no",
)
OPTIONS = tuple(word for setting in SETTINGS for word in ("-o", setting))
_BROKEN = re.compile(
    r"connection (closed|reset|refused|timed out)|lost connection|broken pipe|timed out|no route|not resolve|"
    r"verification failed|permission denied \("
)


@dataclass(frozen=True)
class Ssh:
    """A link to one host."""

    address: Address

    def command(self, argv: list[str]) -> list[str]:
        """Return ssh's command line. ssh hands one line to the login shell, so every argument is quoted for it."""
        port = ["-p", str(self.address.port)] if self.address.port else []
        user = ["-l", self.address.user] if self.address.user else []
        return ["ssh", *self._config(), *OPTIONS, "-T", *port, *user, "--", self.address.host, quoted(argv)]

    def copy(self, files: list[Path], folder: str, *, old: bool = False) -> list[str]:
        """Return scp's command line. `old`: its first protocol, for servers without sftp."""
        host = f"[{self.address.host}]" if ":" in self.address.host else self.address.host
        where = f"{self.address.user}@{host}" if self.address.user else host
        port = ["-P", str(self.address.port)] if self.address.port else []
        options = [*(["-O"] if old else []), *self._config(), *OPTIONS, *port]
        return ["scp", "-q", *options, "--", *map(str, files), f"{where}:{folder}/"]

    def call(self, argv: list[str], limit_seconds: float) -> Done:
        """See `remote.Link`."""
        done = self._run(self.command(argv), limit_seconds)
        if done.code == 255:
            raise Unreachable(self._why(done.err))
        return done

    def push(self, files: list[Path], folder: str, limit_seconds: float) -> str | None:
        """See `remote.Link`."""
        done = self._run(self.copy(files, folder), limit_seconds)
        if done.code != 0 and "subsystem request failed" in done.err:
            done = self._run(self.copy(files, folder, old=True), limit_seconds)
        if done.code == 0:
            return None
        if done.code == 255 or _BROKEN.search(done.err.lower()):
            raise Unreachable(self._why(done.err))
        return self._last_message(done.err)

    def _config(self) -> list[str]:
        return ["-F", str(Path(self.address.config).expanduser())] if self.address.config else []

    def _run(self, command: list[str], limit_seconds: float) -> Done:
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit_seconds, check=False
            )
        except FileNotFoundError:
            raise Unreachable(
                f"{command[0]} is not installed here; install it with: apt-get install openssh-client"
            ) from None
        except subprocess.TimeoutExpired:
            raise DeviceFailed(
                f"{self.address.name}: no answer within {limit_seconds:.0f} seconds; "
                "run the same command again to go on"
            ) from None
        return Done(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))

    def _last_message(self, err: str) -> str:
        """Return the last line that is neither a warning nor decoration."""
        lines = [line.strip() for line in err.splitlines() if line.strip() and not line.startswith(("Warning:", "**"))]
        return lines[-1] if lines else "no message"

    def _why(self, err: str) -> str:
        """Return why the host was not reached, and what to try."""
        name = self.address.name
        try_it = " ".join(["ssh", *self._config(), *(["-p", str(self.address.port)] if self.address.port else [])])
        try_it += f" {self.address.user}@{self.address.host}" if self.address.user else f" {self.address.host}"
        if "verification failed" in err.lower():
            changed = "has changed" if "has changed" in err.lower() else "is not known here"
            return f"{name}: its host key {changed}; check it and accept it with: {try_it}"
        if "permission denied" in err.lower():
            return f"{name}: none of your keys is accepted; see why with: {try_it} true"
        return (
            f"{name} cannot be reached or the connection broke ({self._last_message(err)}); what was copied stays; "
            f"try it with: {try_it} true"
        )
