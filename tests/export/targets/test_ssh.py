"""Verification over ssh against a real OpenSSH server on loopback, and every way in which it can fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.bundle import write
from export.bundle.write import Shipped
from export.targets import Address, DeviceFailed, Unreachable, VerifySettings, dispatch, scripts, wheels
from tests.support.sshd import Server, free_port, start, stop

QUICK = VerifySettings(name="small", repeats=2, latency=False)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    process, server = start(tmp_path_factory.mktemp("sshd"))
    yield server
    stop(process)


@pytest.fixture(scope="module")
def shipped(fp32: Path, images: np.ndarray, labels: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = write.write(
        tmp_path_factory.mktemp("shipped") / "bundle",
        [Shipped(fp32, "student", "fp32")],
        images[:16],
        labels[:16],
        resize=18,
    )
    return made.archive


@pytest.fixture
def ask(shipped: Path, tmp_path: Path) -> Callable[..., dict]:
    """Return a function that verifies and keeps the lines of the log in its attribute `told`."""

    def run(address: Address, settings: VerifySettings = QUICK, limit_seconds: float = 120) -> dict:
        lines: list[str] = []
        run.told = lines  # type: ignore[attr-defined]
        return dispatch.verify(shipped, address, tmp_path, settings, limit_seconds=limit_seconds, log=lines.append)

    return run


def copied(ask: Callable[..., dict]) -> int:
    (line,) = [line for line in ask.told if "files copied" in line]  # type: ignore[attr-defined]
    return int(line.split(": ")[1].split(" of ")[0])


@pytest.mark.slow
def test_answer_comes_back_and_a_second_run_copies_nothing(
    server: Server, ask: Callable[..., dict], shipped: Path, tmp_path: Path
) -> None:
    address = server.target(tmp_path / "device")

    first = ask(address, replace(QUICK, latency=True, repeats=64, threads=2))

    assert first["ok"] is True and first["photos"]["status"] == "ok" and first["models"][0]["latency_ms"]["runs"] <= 192
    assert first["models"][0]["latency_ms"]["threads"] == 2 and first["host"]["cores"] >= 1
    with zipfile.ZipFile(shipped) as archive:
        assert copied(ask) == len(archive.namelist())
    assert ask(address)["ok"] is True and copied(ask) == 0
    assert not list((tmp_path / "device").rglob("__pycache__"))


@pytest.mark.slow
def test_a_partly_copied_bundle_is_completed(server: Server, ask: Callable[..., dict], tmp_path: Path) -> None:
    address = server.target(tmp_path / "device")
    ask(address)
    folder = tmp_path / "device" / "bundle-small"
    model = folder / "small.fp32.onnx"
    model.write_bytes(model.read_bytes()[:1000])
    (folder / "export" / "runtime" / "photos.py").unlink()
    (folder / "left.over").write_text("of another bundle")

    assert ask(address)["ok"] is True and copied(ask) == 2
    assert not (folder / "left.over").exists()


@pytest.mark.slow
def test_a_broken_connection_is_one_sentence_and_the_next_run_resumes(
    server: Server, ask: Callable[..., dict], shipped: Path, tmp_path: Path
) -> None:
    relay = tmp_path / "relay.py"  # lets so many bytes pass to the server, over all connections, and then hangs up
    relay.write_text(
        "import os, select, socket, sys\n"
        "link, count = socket.create_connection(('127.0.0.1', int(sys.argv[1]))), sys.argv[2]\n"
        "def keep(left):\n"
        "    open(f'{count}.{os.getpid()}', 'w').write(str(left)); os.replace(f'{count}.{os.getpid()}', count)\n"
        "left = int(open(count).read())\n"
        "while left > 0:\n"
        "    for ready in select.select([0, link], [], [])[0]:\n"
        "        data = os.read(0, 4096) if ready == 0 else link.recv(65536)\n"
        "        if not data: keep(left); sys.exit()\n"
        "        link.sendall(data) if ready == 0 else os.write(1, data)\n"
        "        left -= len(data) if ready == 0 else 0\n"
        "keep(0)\n"
    )
    config, count = tmp_path / "ssh_config", tmp_path / "count"
    config.write_text(f"{server.config.read_text()}ProxyCommand {sys.executable} {relay} %p {count}\n")
    size = sum(one.compress_size for one in zipfile.ZipFile(shipped).infolist())
    count.write_text(str(size // 2))
    address = server.target(tmp_path / "device", config=config)

    with pytest.raises(
        Unreachable, match=r"cannot be reached or the connection broke .*what was copied stays; try it with: ssh -F"
    ):
        ask(address)

    assert [path for path in (tmp_path / "device").rglob("*") if path.is_file()]
    assert ask(server.target(tmp_path / "device"))["ok"] is True
    with zipfile.ZipFile(shipped) as archive:
        assert 0 < copied(ask) < len(archive.namelist())


def test_unreachable_hosts_say_why(server: Server, ask: Callable[..., dict], tmp_path: Path) -> None:
    strange, locked = tmp_path / "strange", tmp_path / "locked"
    strange.write_text(server.config.read_text().replace("known_hosts\n", "nobody\n", 1))
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
    locked.write_text(server.config.read_text().replace(f"{server.folder}/user\n", f"{tmp_path}/other\n"))
    closed = replace(server.target(tmp_path / "device"), port=free_port())

    for address, why in (
        (
            server.target(tmp_path / "device", config=strange),
            "its host key is not known here; check it and accept it with: ssh -F",
        ),
        (server.target(tmp_path / "device", config=locked), "none of your keys is accepted; see why with: ssh -F"),
        (
            closed,
            r"cannot be reached or the connection broke "
            r"\(ssh: connect to host 127.0.0.1 port \d+: Connection refused\)",
        ),
    ):
        with pytest.raises(Unreachable, match=why) as raised:
            ask(address)
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "device").exists()


@pytest.mark.slow
def test_unsuitable_interpreters_are_refused(server: Server, ask: Callable[..., dict], tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)

    with pytest.raises(Unreachable, match="has no working Python 3.8 or newer at /no/python; install one there"):
        ask(server.target(tmp_path / "device", python="/no/python"))
    with pytest.raises(
        Unreachable,
        match=r"bare/bin/python does not have numpy and onnxruntime \(ModuleNotFoundError: No module named 'numpy'\)",
    ):
        ask(server.target(tmp_path / "device", python=str(tmp_path / "bare" / "bin" / "python")))


@pytest.fixture
def poor(tmp_path: Path) -> Iterator[Callable[[str], Server]]:
    """A host whose programs are a shell, mkdir and a `uname` that answers as told."""
    started = []

    def make(machine: str, *programs: str) -> Server:
        (tmp_path / "bin").mkdir()
        for name in ("sh", "mkdir", *programs):
            (tmp_path / "bin" / name).symlink_to(
                os.path.realpath(sys.executable if name == "python3" else str(shutil.which(name)))
            )
        (tmp_path / "bin" / "uname").write_text(f"#!/bin/sh\necho {machine}\n")
        (tmp_path / "bin" / "uname").chmod(0o755)
        (tmp_path / "sshd").mkdir()
        process, server = start(tmp_path / "sshd", f"SetEnv PATH={tmp_path / 'bin'} HOME={tmp_path}")
        started.append(process)
        return server

    yield make
    for process in started:
        stop(process)


@pytest.mark.slow
def test_a_host_without_python_is_unreachable(
    poor: Callable[..., Server], ask: Callable[..., dict], tmp_path: Path
) -> None:
    with pytest.raises(
        Unreachable, match=r"has no Python 3.8 or newer; install one there \(Debian: apt-get install python3-venv\)"
    ):
        ask(poor("aarch64").target(tmp_path / "device", python=None))


@pytest.mark.slow
def test_a_processor_without_wheels_is_unreachable(
    poor: Callable[..., Server], ask: Callable[..., dict], tmp_path: Path
) -> None:
    server = poor("armv7l", "python3")

    with pytest.raises(
        Unreachable,
        match=r"is armv7l \(64 bits\); onnxruntime has wheels for x86_64 and aarch64 only; .*'ssh://.*\?python=/path'",
    ):
        ask(server.target(tmp_path / "device", python=None))


@pytest.mark.slow
def test_a_full_disk_is_reported(server: Server, ask: Callable[..., dict], tmp_path: Path) -> None:
    device = tmp_path / "disk"
    device.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(device)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    try:
        with pytest.raises(DeviceFailed, match=r"the disk is full: \d+ MB free in .*disk, \d+ MB needed"):
            ask(server.target(device))
        with pytest.raises(DeviceFailed, match="the disk is full"):
            monkey = pytest.MonkeyPatch()
            monkey.setattr(
                "export.targets.remote.FREE_MARGIN", -(10**9)
            )  # the copy itself runs into the end of the disk
            try:
                ask(server.target(device))
            finally:
                monkey.undo()
    finally:
        subprocess.run(["umount", str(device)], check=True)


@pytest.mark.slow
def test_a_verifier_timeout_is_reported(server: Server, ask: Callable[..., dict], tmp_path: Path) -> None:
    with pytest.raises(DeviceFailed, match="the verifier did not answer within 0 seconds"):
        ask(server.target(tmp_path / "device"), limit_seconds=0.01)


@pytest.mark.slow
def test_wrong_answers_are_an_answer_not_an_error(
    server: Server, fp32: Path, images: np.ndarray, labels: np.ndarray, tmp_path: Path
) -> None:
    made = write.write(tmp_path / "bundle", [Shipped(fp32, "student", "fp32")], images[:16], labels[:16])
    with np.load(made.folder / "samples.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    arrays["logits/small.fp32.onnx"] = -arrays["logits/small.fp32.onnx"]
    np.savez(made.folder / "samples.npz", **arrays)
    names = [name for name in made.files if name != "checksums.sha256"]
    (made.folder / "checksums.sha256").write_text(
        "".join(f"{scripts.sha256(made.folder / name)}  {name}\n" for name in names)
    )
    archive = Path(shutil.make_archive(str(tmp_path / "wrong"), "zip", tmp_path, "bundle"))

    answer = dispatch.verify(archive, server.target(tmp_path / "device"), tmp_path, QUICK)

    assert answer["ok"] is False
    assert str(dispatch.describe_failure(answer)).startswith("wrong answers from small.fp32.onnx: it agrees on ")


@pytest.mark.slow
def test_nothing_reaches_a_shell_unquoted(server: Server, ask: Callable[..., dict], tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    program = f'import sys; sys.exit("no decoder; touch {trap}")'
    command = f"{sys.executable} -c '{program}' $(touch {trap}) ; touch {trap} \"&&\" `touch {trap}`"

    answer = ask(server.target(tmp_path / "device"), replace(QUICK, preprocess=command))

    assert answer["photos"]["status"] == "wrong" and f"no decoder; touch {trap}" in answer["photos"]["sentence"]
    assert not trap.exists()


@pytest.mark.slow
@pytest.mark.extended
def test_packages_are_pushed_to_a_host_without_any(server: Server, ask: Callable[..., dict], tmp_path: Path) -> None:
    address = replace(server.target(tmp_path / "device", python=None), wheels="push")
    try:
        answer = ask(address)
    except Unreachable as error:
        pytest.skip(f"the package index cannot be reached: {error}")

    assert answer["ok"] is True and any("pushing" in line for line in ask.told)  # type: ignore[attr-defined]
    assert answer["photos"]["status"] == "not run" and "Pillow is not installed" in answer["photos"]["sentence"]
    assert not list((tmp_path / "device" / "wheels").iterdir())
    ask(address)
    assert not any("pushing" in line for line in ask.told)  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.extended
def test_a_host_with_a_network_installs_packages_itself(
    server: Server, ask: Callable[..., dict], tmp_path: Path
) -> None:
    answer = ask(server.target(tmp_path / "device", python=None))

    assert answer["ok"] is True
    if not any("its own network" in line for line in ask.told):  # type: ignore[attr-defined]
        pytest.skip("the host has no package index of its own")


def test_wheels_are_downloaded_for_the_devices_platform() -> None:
    command = wheels.command(Path("w"), ["numpy>=1.21", "onnxruntime>=1.19"], "aarch64", (3, 9), (2, 31))

    assert (
        command[-4:] == ["-d", "w", "numpy>=1.21", "onnxruntime>=1.19"]
        and command[command.index("--python-version") + 1] == "3.9"
    )
    assert command[command.index("--platform") + 1] == "manylinux_2_31_aarch64" and "manylinux_2_17_aarch64" in command
    with pytest.raises(Unreachable, match="no glibc 2.17 or newer"):
        wheels.platforms("aarch64", None)
