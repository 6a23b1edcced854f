"""The bundle on ARM64: emulation of a Cortex-A76 with Debian's Python 3.11 and onnxruntime's aarch64 wheel.

User-mode emulation executes ARM's instructions one by one, so accuracy and rounding are those of the ARM kernels; the
time is not. Needs qemu-aarch64-static, apt-get and dpkg-deb, and on the first run the Debian mirror and the package
index; skips with the reason.
COMPRESS_ARM64_ROOT names a folder in which the ARM64 system is kept between runs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compress.data.sources import fashion
from export import runtime
from export.bundle import write
from export.bundle.write import Shipped
from export.graph.from_torch import to_onnx
from export.int8.quantize import quantize

pytestmark = pytest.mark.slow

CPU = "cortex-a76"  # has the dot-product instructions that int8 kernels use
PACKAGES = (
    "python3.11-minimal",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libc6",
    "libgcc-s1",
    "libstdc++6",
    "libexpat1",
    "zlib1g",
    "libbz2-1.0",
    "liblzma5",
    "libffi8",
    "libuuid1",
    "libcrypt1",
    "libssl3",
)
RUNTIME = "onnxruntime==1.26.0"  # 1.28 and later crash under qemu 7.2
IMAGES = 500


def _run(command: list[str], cwd: Path, seconds: float = 300) -> None:
    """Run a step of the preparation; skips with what it said where it fails."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{command[0]} {command[1]} did not end within {seconds:.0f} seconds")
    if done.returncode != 0:
        pytest.skip(f"{' '.join(command[:3])} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")


def _prepare(folder: Path) -> None:
    """Fetch Debian's packages for arm64 and the wheels, and unpack both: nothing is installed on this machine."""
    for name in ("lists/partial", "archives/partial", "debs", "wheels", "root", "site"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    sources = "/etc/apt/sources.list.d/debian.sources"
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures::": "arm64",
        "APT::Sandbox::User": "root",
        "Dir::State::lists": f"{folder}/lists",
        "Dir::State::status": f"{folder}/status",
        "Dir::Cache::archives": f"{folder}/archives",
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        **({"Dir::Etc::sourcelist": sources, "Dir::Etc::sourceparts": "-"} if Path(sources).is_file() else {}),
    }
    flags = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
    _run(["apt-get", "update", "-qq", *flags], folder)
    _run(["apt-get", "download", "-qq", *flags, *PACKAGES], folder / "debs")
    for package in sorted((folder / "debs").glob("*.deb")):
        _run(["dpkg-deb", "-x", str(package), str(folder / "root")], folder)
    places = [part for minor in (28, 27, 17) for part in ("--platform", f"manylinux_2_{minor}_aarch64")]
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--only-binary=:all:",
        "--python-version",
        "3.11",
        "--implementation",
        "cp",
        *places,
    ]
    _run([*pip, "-d", str(folder / "wheels"), RUNTIME, "numpy>=2,<2.4"], folder)
    for wheel in sorted((folder / "wheels").glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "site")
    (folder / "ready").touch()


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that is Python on ARM64."""
    emulator = shutil.which("qemu-aarch64-static")
    if emulator is None or shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        pytest.skip("needs Debian and its emulator; install it with: apt-get install qemu-user-static")
    kept = os.environ.get("COMPRESS_ARM64_ROOT")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("arm64")
    if not (folder / "ready").is_file():
        _prepare(folder)
    root = folder / "root"
    return [
        emulator,
        "-cpu",
        CPU,
        "-L",
        str(root),
        "-E",
        f"PYTHONPATH={folder / 'site'}",
        "-E",
        f"PYTHONHOME={root / 'usr'}",
        str(root / "usr/bin/python3.11"),
    ]


def _network() -> nn.Module:
    """Depthwise blocks with a residual sum, as compact networks are made of."""

    def block(channels: int, out: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU6(),
            nn.Conv2d(channels, out, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU6(),
        )

    stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
    return nn.Sequential(
        stem,
        block(16, 32, 1),
        block(32, 64, 2),
        block(64, 64, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a network that was trained for a moment, in float and in int8 for ARM64 and for x86."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    arrays = fashion.load()
    images = {
        part: np.repeat(np.pad(arrays[f"{part}_images"], ((0, 0), (2, 2), (2, 2)))[..., None], 3, axis=3)
        for part in ("train", "test")
    }
    network = _network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    x = (torch.from_numpy(images["train"]).permute(0, 3, 1, 2).float() / 255 - 0.29) / 0.35
    y = torch.from_numpy(arrays["train_labels"])
    for index in torch.cat([torch.randperm(len(x)) for _ in range(3)]).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x[index]), y[index]).backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("shipped")
    contract = runtime.Contract(
        tuple(str(i) for i in range(10)), 32, (0.29,) * 3, (0.35,) * 3, "uint8_nhwc", "compress 0"
    )
    to_onnx(network.eval(), folder / "float.onnx", contract)
    models = [Shipped(folder / "float.onnx", "student", "fp32")]
    for isa in ("arm64", "x86-vnni"):
        quantize(folder / "float.onnx", folder / f"{isa}.onnx", images["train"][:64], isa=isa)
        models.append(Shipped(folder / f"{isa}.onnx", "student", "int8", isa))
    chosen = slice(0, IMAGES)
    return write.write(
        folder / "bundle", models, images["test"][chosen], arrays["test_labels"][chosen], resize=32
    ).folder


@pytest.mark.extended
def test_the_arm64_file_is_right_on_arm_kernels(
    python: list[str], shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(shipped, tmp_path / "bundle"))

    done = subprocess.run(
        [*python, "-B", "-m", "export.verify", "--json", "../answer.json", "."],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads((tmp_path / "answer.json").read_text())
    rows = {row["file"]: row for row in answer["models"]}
    with np.load(folder / "samples.npz") as stored:
        labels = stored["labels"]
        x86 = {name: float((stored[f"logits/{name}"].argmax(1) == labels).mean()) for name in rows}
    with capsys.disabled():
        print(f"\n{answer['host']['architecture']}, onnxruntime {answer['onnxruntime']}, {IMAGES} images")
        for name, row in rows.items():
            print(
                f"  {name}: top-1 {row['top1']:.4f} on ARM kernels, {x86[name]:.4f} on x86's; "
                f"agreement {row['agreement']:.4f}, "
                f"largest logit difference {row['max_abs_diff']:.3g}"
            )
    assert (answer["host"]["architecture"], answer["host"]["isa"], answer["not_timed"]) == (
        "aarch64",
        "arm64",
        "emulated",
    )
    assert answer["host"]["cpu"].startswith("emulated on ") and answer["onnxruntime"] == RUNTIME.partition("==")[2]
    assert rows["float.onnx"]["ok"] is True and rows["float.onnx"]["agreement"] == 1.0
    assert rows["arm64.onnx"]["ok"] is True and rows["arm64.onnx"]["agreement"] >= 0.97
    assert x86["float.onnx"] > 0.7 and abs(rows["arm64.onnx"]["top1"] - x86["arm64.onnx"]) <= 0.015
    assert abs(rows["arm64.onnx"]["top1"] - rows["float.onnx"]["top1"]) <= 0.03
    assert rows["x86-vnni.onnx"]["ok"] is None and rows["x86-vnni.onnx"]["note"] == "built for x86-vnni, this is arm64"
    for row in rows.values():  # emulated time is nobody's time
        assert row["latency_ms"] is None and row["peak_memory_bytes"] is None
    assert "time and memory were not measured (emulated)" in done.stdout and "photos: not run" in done.stdout
