"""Names of targets, and the arguments that leave this machine for them."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from export.bundle import write
from export.bundle.write import Shipped
from export.targets import Address, DeviceFailed, Unreachable, VerifySettings, WrongTarget, dispatch, parse
from export.targets.adb import FOLDER, Adb
from export.targets.ssh import OPTIONS, Ssh
from export.targets.unpack import checksums, unpacked


def test_target_addresses_are_parsed() -> None:
    address = parse("ssh://pi@board.local:2222/~/models?python=/opt/venv/bin/python&wheels=push")

    assert (address.user, address.host, address.port, address.folder) == ("pi", "board.local", 2222, "models")
    assert (address.python, address.wheels, address.name) == (
        "/opt/venv/bin/python",
        "push",
        "ssh://pi@board.local:2222/~/models",
    )
    assert parse("ssh://[::1]/data/x/").host == "::1" and parse("ssh://[::1]/data/x/").folder == "/data/x"
    assert parse("adb://0123ABCD?python=/data/local/tmp/python").host == "0123ABCD"
    assert parse("local").scheme == "local"


def test_a_scheme_without_a_branch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.targets.SCHEMES", ("ssh", "adb", "pigeon"))
    with pytest.raises(WrongTarget, match="the scheme 'pigeon' has no address"):
        parse("pigeon://loft")
    with pytest.raises(WrongTarget, match="no link for the scheme 'pigeon'"):
        dispatch.isa(Address("pigeon://loft", "pigeon"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("pi@board", "expected local, browser, ssh://user@host"),
        ("http://board", "expected local, browser, ssh://user@host"),
        ("ssh://", "expected local, browser, ssh://user@host"),
        ("ssh://-oProxyCommand=touch", "expected ssh://user@host"),
        ("ssh://a;b@board", "expected ssh://user@host"),
        ("ssh://pi:secret@board", "without a password"),
        ("ssh://board:99999", "the port must be a number"),
        ("ssh://board/a b", "may hold letters"),
        ("ssh://board/$(x)", "may hold letters"),
        ("ssh://board/a/../../etc", "may hold letters"),
        ("ssh://board?pyhton=/x", "no option 'pyhton'; there are python, wheels, config"),
        ("ssh://board?python=-c", "must be a plain path"),
        ("ssh://board?wheels=none", "wheels is auto or push"),
        ("adb://-e", "is not a serial"),
    ],
)
def test_invalid_addresses_are_refused_in_one_sentence(text: str, why: str) -> None:
    with pytest.raises(WrongTarget) as raised:
        parse(text)
    assert (
        why in str(raised.value)
        and str(raised.value).startswith(f"--target {text}: ")
        and "\n" not in str(raised.value)
    )


def test_ssh_and_scp_commands_quote_the_remote_line() -> None:
    link = Ssh(parse("ssh://pi@[::1]:2222/data?config=/etc/lab"))
    nasty = ["echo", "a b", "$(id)", "it's", ";", "", "ü\n"]

    command = link.command(nasty)

    assert (
        command[:3] == ["ssh", "-F", "/etc/lab"]
        and "StrictHostKeyChecking=yes" in OPTIONS
        and "BatchMode=yes" in OPTIONS
    )
    assert command[-8:-1] == ["-T", "-p", "2222", "-l", "pi", "--", "::1"] and shlex.split(command[-1]) == nasty
    said = subprocess.run(["sh", "-c", command[-1]], capture_output=True, text=True, check=True).stdout
    assert said == "a b $(id) it's ;  ü\n\n"
    assert link.copy([Path("a"), Path("b")], "/data/x")[-4:] == ["--", "a", "b", "pi@[::1]:/data/x/"]
    assert link.copy([Path("a")], "/data", old=True)[1:3] == ["-q", "-O"]


def test_adb_commands_name_the_serial() -> None:
    link = Adb(parse("adb://0123ABCD"))

    assert link.command(["ls", "a b"]) == ["adb", "-s", "0123ABCD", "shell", "-T", "ls 'a b'"]
    assert link.copy([Path("m.onnx"), Path("x")], FOLDER) == [
        "adb",
        "-s",
        "0123ABCD",
        "push",
        "m.onnx",
        "x",
        f"{FOLDER}/",
    ]


def test_missing_adb_python_or_device_is_unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "none.zip"
    with pytest.raises(
        Unreachable, match=r"Android has no Python of its own; name one .*--target 'adb://X\?python=/path'"
    ):
        dispatch.verify(archive, parse("adb://X"), tmp_path, VerifySettings())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unreachable, match="adb is not installed here; install it with: apt-get install adb"):
        Adb(parse("adb://X")).call(["true"], 5)
    (tmp_path / "adb").write_text("#!/bin/sh\necho \"adb: device 'X' not found\" >&2; exit 1\n")
    (tmp_path / "adb").chmod(0o755)
    with pytest.raises(
        Unreachable, match=r"adb://X cannot be reached \(adb: device 'X' not found\); see it with: adb devices"
    ):
        Adb(parse("adb://X")).call(["true"], 5)


@pytest.fixture(scope="module")
def shipped(
    fp32: Path, images: np.ndarray, labels: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> write.Bundle:
    return write.write(
        tmp_path_factory.mktemp("shipped") / "bundle", [Shipped(fp32, "student", "fp32")], images[:16], labels[:16]
    )


@pytest.mark.slow
def test_verification_through_a_fake_adb(
    shipped: write.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No hardware: a program that runs adb's lines in a shell here shows that the lines are right."""
    stand_in = tmp_path / "bin" / "adb"
    stand_in.parent.mkdir()
    stand_in.write_text(
        '#!/bin/sh\n[ "$1 $2" = "-s X" ] || exit 9\nshift 2\nif [ "$1" = shell ]; then exec sh -c "$3"; fi\n'
        'shift; for last; do :; done; while [ $# -gt 1 ]; do cp "$1" "$last" || exit 1; shift; done\n'
    )
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stand_in.parent}:{os.environ['PATH']}")
    address = parse(f"adb://X{tmp_path}/device?python={sys.executable}")

    answer = dispatch.verify(shipped.archive, address, tmp_path, VerifySettings(latency=False))

    assert answer["ok"] is True and (tmp_path / "device" / "answer.json").is_file()


def test_a_damaged_archive_and_strange_names_are_refused(shipped: write.Bundle, tmp_path: Path) -> None:
    broken = tmp_path / "b.zip"
    broken.write_bytes(shipped.archive.read_bytes()[:500])
    with pytest.raises(DeviceFailed, match="b.zip is damaged"):
        unpacked(broken, tmp_path / "x")

    folder = Path(shutil.copytree(shipped.folder, tmp_path / "strange"))
    (folder / "checksums.sha256").write_text(f"{'0' * 64}  ../../etc/passwd\n")
    with pytest.raises(DeviceFailed, match="which is not a plain file name"):
        checksums(folder)


def test_failures_are_described() -> None:
    row = {"file": "a.onnx", "ok": False, "agreement": 0.25, "images": 16, "max_abs_diff": 3.0}
    wrong = {"ok": False, "models": [row], "photos": {"ok": True}, "host": {"isa": "arm64"}}

    assert dispatch.describe_failure({**wrong, "ok": True}) is None
    assert (
        dispatch.describe_failure(wrong)
        == "wrong answers from a.onnx: it agrees on 25.0% of 16 images, largest logit difference 3"
    )
    seen = {"ok": False, "sentence": "photos: 8 of 8 decoded by x are wrong: looks like BGR"}
    assert dispatch.describe_failure({**wrong, "models": [{**row, "ok": True}], "photos": seen}) == seen["sentence"]
    assert (
        dispatch.describe_failure({**wrong, "models": [{**row, "ok": None}]})
        == "no model in the bundle is meant for arm64: nothing was verified"
    )
