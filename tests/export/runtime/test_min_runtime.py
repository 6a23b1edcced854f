"""`export.min_runtime`: the oldest promised onnxruntime, with numpy 1, runs every kind of shipped file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from compress.recipe.schema import Export
from export.bundle import write
from export.bundle.write import Shipped
from export.graph import rewrites
from export.graph.from_torch import fixed_batch, to_onnx
from export.int8 import search
from export.int8.integer_share import integer_share
from export.int8.quantize import quantize
from export.runtime import TARGETS, Contract, Model, isa

OLDEST = "1.19.2"  # the newest release of the promised 1.19

_RUN = """
import json, sys
from pathlib import Path
import numpy, onnxruntime
from export.runtime import Model, isa, runs_on
images = numpy.load("images.npy")
loaded = {path.name: Model.load(path) for path in sorted(Path(".").glob("*.onnx"))}
# An int8 file for another processor runs as written: this one's kernels may saturate, and two releases differ in that.
for name, model in loaded.items():
    if not runs_on(model.target, isa()):
        loaded[name] = Model.load(name, as_written=True)
numpy.savez("logits.npz", **{name: model.run(images) for name, model in loaded.items()})
print(json.dumps([sys.version_info[:2], numpy.__version__, onnxruntime.__version__]))
"""


def _old_python() -> str:
    """The oldest interpreter here that the device half promises to run on, else this one."""
    for name in ("python3.8", "python3.9", "python3.10", "python3.11", "python3.12"):
        found = shutil.which(name)
        if found and subprocess.run([found, "-c", "import venv, ensurepip"], capture_output=True).returncode == 0:
            return found
    return sys.executable


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with the oldest onnxruntime and numpy 1."""
    folder = tmp_path_factory.mktemp("old")
    made = subprocess.run([_old_python(), "-m", "venv", str(folder)], capture_output=True, text=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"]
    installed = (
        subprocess.run([*install, f"onnxruntime=={OLDEST}", "numpy<2"], capture_output=True, text=True)
        if made.returncode == 0
        else made
    )
    if installed.returncode != 0:
        reason = (installed.stderr.strip().splitlines() or ["no message"])[-1]
        pytest.skip(f"onnxruntime {OLDEST} cannot be installed here: {reason}")
    return python


@pytest.fixture(scope="module")
def files(
    fp32: Path,
    network: nn.Module,
    contract: Contract,
    calibration: np.ndarray,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder with every kind of ONNX file that a run folder can hold."""
    folder = tmp_path_factory.mktemp("files")
    shutil.copyfile(fp32, folder / "student.fp32.onnx")
    for target in TARGETS:
        quantize(fp32, folder / f"student.int8.{target}.onnx", calibration, isa=target)
    hard = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2),
        nn.Hardswish(),
        nn.Conv2d(8, 8, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    ).eval()
    to_onnx(hard, folder / "hard.fp32.onnx", contract)
    assert rewrites.for_integers(folder / "hard.fp32.onnx", folder / "hard.source.onnx", calibration, integer_share)[
        0
    ].kept
    quantize(folder / "hard.source.onnx", folder / "hard.int8.onnx", calibration, isa="x86-vnni")
    for name in ("student.fp32", "student.int8.x86-vnni"):
        fixed_batch(folder / f"{name}.onnx", folder / f"{name}.batch1.onnx")
    return folder


def _device_half(folder: Path) -> None:
    (folder / "export" / "runtime").mkdir(parents=True)
    for name in write.RUNTIME_FILES:
        shutil.copyfile(write.PACKAGE / name, folder / "export" / name)


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("PYTHON") and key != "VIRTUAL_ENV"}


@pytest.mark.slow
@pytest.mark.extended
def test_every_kind_of_file_runs_in_the_oldest_runtime(
    old: Path, files: Path, images: np.ndarray, tmp_path: Path
) -> None:
    assert OLDEST.startswith(f"{Export().min_runtime}.")  # what recipes promise unless they say otherwise
    shutil.copytree(files, tmp_path / "device")
    _device_half(tmp_path / "device")
    np.save(tmp_path / "device" / "images.npy", images[:64])

    done = subprocess.run(
        [str(old), "-c", _RUN], cwd=tmp_path / "device", capture_output=True, text=True, env=_environment()
    )

    assert done.returncode == 0, done.stderr
    _, numpy_version, version = json.loads(done.stdout)
    assert version == OLDEST and numpy_version.startswith("1.")
    found = np.load(tmp_path / "device" / "logits.npz")
    names = sorted(path.name for path in files.glob("*.onnx"))
    assert sorted(found.files) == names and len(names) == 10
    for name in names:
        expected = search.logits(files / name, Model.load(files / name).target, images[:64])
        assert np.abs(found[name] - expected).max() <= (1e-3 if "fp32" in name else 0.05) * np.abs(expected).max(), name
        assert (found[name].argmax(1) == expected.argmax(1)).mean() >= (1.0 if "fp32" in name else 0.95), name


@pytest.mark.slow
def test_the_bundle_verifies_itself_in_the_oldest_runtime(
    old: Path, files: Path, images: np.ndarray, labels: np.ndarray, tmp_path: Path
) -> None:
    here = next((target for target in TARGETS if target == isa()), "x86-vnni")
    shipped = [
        Shipped(files / "student.fp32.onnx", "student", "fp32"),
        Shipped(files / f"student.int8.{here}.onnx", "student", "int8", here),
    ]
    made = write.write(tmp_path / "bundle", shipped, images[:32], labels[:32])

    command = [str(old), "-m", "export.verify", "--json", "../answer.json", "--repeats", "16"]
    done = subprocess.run(command, cwd=made.folder, capture_output=True, text=True, env=_environment())

    assert done.returncode == 0, done.stderr
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert answer["ok"] and answer["onnxruntime"] == OLDEST
    done = subprocess.run(
        [*command, "--no-latency", "--provider", "cpu"],
        cwd=made.folder,
        capture_output=True,
        text=True,
        env=_environment(),
    )
    assert done.returncode == 0, done.stderr
    for row in json.loads((tmp_path / "answer.json").read_text())[
        "models"
    ]:  # what ran where is read from a profile: its form must be the same
        assert row["provider"]["nodes"] == row["provider"]["of"] > 3
