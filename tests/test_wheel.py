"""The wheel works in a virtual environment of its own, outside a checkout: copy a recipe, run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMALL = {
    "data.limit_train": 200,
    "data.limit_test": 60,
    "data.calibration": 16,
    "train.epochs": 1,
    "distill.baseline": "false",
    "teacher.candidates": "[{model: resnet8x4, weights: embedded}]",
    "validate.warmup": 1,
    "validate.repeats": 64,
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the scripts folder of a fresh environment that holds the wheel and borrows its dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder / "dist"), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (folder / "dist").glob("*.whl")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        str(wheel),
    ]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    # A plain path, whose own .pth files are not read: the checkout that this environment may link to stays out.
    (Path(site) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python.parent


def call(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COMPRESS"))}
    return subprocess.run(
        [installed / "compress", *arguments],
        cwd=folder,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.extended
def test_a_copied_recipe_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    where = "import compress, export; print(compress.__file__, export.__file__)"
    done = subprocess.run(
        [installed / "python", "-I", "-c", where], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.count(str(installed.parent)) == 2, done.stdout

    assert call(installed, tmp_path, "recipes", "--copy", "mobilenet").returncode == 0
    settings = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
    done = call(installed, tmp_path, "run", "mobilenet.yaml", "--json", *settings)
    assert done.returncode in (0, 5, 6), done.stderr
    report = json.loads(done.stdout)
    assert report["recipe"] == "mobilenet" and len(report["requirements"]) == 3
    run = tmp_path / "artifacts" / "runs" / "mobilenet" / "latest"
    assert {"report.html", "student.int8.onnx", "bundle.zip"} <= {path.name for path in run.iterdir()}
