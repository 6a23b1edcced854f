"""A real OpenSSH server on loopback with its own keys, for the tests of remote devices."""

from __future__ import annotations

import getpass
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from export.targets import Address, parse

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@dataclass(frozen=True)
class Server:
    """A running sshd; `config` is the client's configuration file."""

    folder: Path
    port: int
    config: Path

    def name(self, device: Path, python: str | None = sys.executable, config: Path | None = None) -> str:
        """Return the target that verifies in the folder `device` with an interpreter of this machine."""
        options = f"config={config or self.config}" + (f"&python={python}" if python else "")
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}{device}?{options}"

    def target(self, device: Path, python: str | None = sys.executable, config: Path | None = None) -> Address:
        return parse(self.name(device, python, config))


def free_port() -> int:
    """Return a free port below those that systems hand out by themselves (from 32768 on).

    So nothing takes it before the server does, or while the server is stopped.
    """
    for port in random.SystemRandom().sample(range(20000, 32000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    raise AssertionError("none of a hundred ports is free")


def start(folder: Path, *more: str, port: int | None = None) -> tuple[subprocess.Popen[bytes], Server]:
    """Start a server, with new keys if the folder has none; skip the test if this machine cannot."""
    if SSHD is None or shutil.which("ssh") is None or shutil.which("scp") is None:
        pytest.skip("no OpenSSH server and client here; install them with: apt-get install openssh-server")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    for name in ("host", "user"):
        if (folder / name).exists():
            continue
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    port = port or free_port()
    (folder / "authorized_keys").write_text((folder / "user.pub").read_text())
    host = " ".join((folder / "host.pub").read_text().split()[:2])
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host}\n")
    lines = [
        f"Port {port}",
        "ListenAddress 127.0.0.1",
        f"HostKey {folder}/host",
        f"PidFile {folder}/pid",
        f"AuthorizedKeysFile {folder}/authorized_keys",
        "UsePAM no",
        "StrictModes no",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "Subsystem sftp internal-sftp",
        "LogLevel ERROR",
        *more,
    ]
    (folder / "sshd_config").write_text("\n".join(lines) + "\n")
    client = [
        f"IdentityFile {folder}/user",
        "IdentitiesOnly yes",
        f"UserKnownHostsFile {folder}/known_hosts",
        "GlobalKnownHostsFile /dev/null",
    ]
    (folder / "ssh_config").write_text("\n".join(client) + "\n")
    process = subprocess.Popen([str(SSHD), "-D", "-e", "-f", str(folder / "sshd_config")], stderr=subprocess.PIPE)
    for _ in range(100):
        if process.poll() is not None:
            assert process.stderr is not None
            pytest.skip(f"sshd does not start here: {process.stderr.read().decode().strip().splitlines()[-1]}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            time.sleep(0.05)
    return process, Server(folder, port, folder / "ssh_config")


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a server."""
    process.terminate()
    process.wait(timeout=10)
    assert process.stderr is not None
    process.stderr.close()
