"""The bundle in an environment that has exactly the two packages of its requirements."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

from export.bundle import write
from export.bundle.write import Shipped


@pytest.mark.slow
@pytest.mark.extended
def test_bundle_verifies_with_two_packages(
    fp32: Path, int8: Path, images: np.ndarray, labels: np.ndarray, tmp_path: Path
) -> None:
    models = [Shipped(fp32, "student", "fp32"), Shipped(int8, "student", "int8", "x86-vnni")]
    made = write.write(tmp_path / "made" / "bundle", models, images[:32], labels[:32])
    shutil.unpack_archive(made.archive, tmp_path / "device")  # what travels is the zip
    folder = tmp_path / "device" / "bundle"
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", "requirements.txt"]
    installed = subprocess.run(install, cwd=folder, capture_output=True, text=True)
    if installed.returncode != 0:
        pytest.skip(f"the package index cannot be reached: {installed.stderr.strip().splitlines()[-1]}")
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}

    command = [str(python), "-m", "export.verify", "--json", "../answer.json", "--repeats", "64"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)

    assert done.returncode == 0, done.stderr
    answer = json.loads((tmp_path / "device" / "answer.json").read_text())
    assert answer["ok"] and [row["images"] for row in answer["models"]] == [32, 32]
    absent = subprocess.run([str(python), "-c", "import torch"], capture_output=True)
    assert absent.returncode != 0 and sys.prefix not in done.stdout
