"""`python -m export.verify` in a bundle: right answers pass, and nothing else does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from export import runtime, verify
from export.bundle import write
from export.bundle.write import Shipped
from export.int8.quantize import quantize

# Runs the module as `python -m` does, where none of these can be imported.
_ISOLATED = """
import runpy, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnx", "compress", "torchvision", "onnxscript"):
            raise ImportError(name + " must not be imported")
sys.meta_path.insert(0, Block())
sys.path.insert(0, "")
sys.argv[0] = "export.verify"
runpy.run_module("export.verify", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def shipped(
    fp32: Path,
    images: np.ndarray,
    labels: np.ndarray,
    calibration: np.ndarray,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A bundle with a file for this machine and one for another."""
    here = runtime.isa() if runtime.isa() in runtime.TARGETS else "x86-vnni"
    other = "x86-vnni" if here == "arm64" else "arm64"
    folder = tmp_path_factory.mktemp("shipped")
    models = [Shipped(fp32, "student", "fp32")]
    for name, isa in (("here", here), ("other", other)):
        quantize(fp32, folder / f"{name}.onnx", calibration, isa=isa)
        models.append(Shipped(folder / f"{name}.onnx", "student", "int8", isa))
    return write.write(folder / "bundle", models, images[:32], labels[:32]).folder


@pytest.fixture
def copied(shipped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shipped, tmp_path / "bundle"))


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", _ISOLATED, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


def test_a_fresh_bundle_verifies_without_torch(copied: Path, labels: np.ndarray) -> None:
    done = _run(copied, "--json", "../answer.json", "--repeats", "64")

    assert done.returncode == 0, done.stderr
    answer = json.loads((copied.parent / "answer.json").read_text())
    assert answer["ok"] is True and answer["onnxruntime"] == answer["host"]["onnxruntime"]
    float_row, here, other = answer["models"]
    assert (
        float_row["images"] == 32
        and float_row["agreement"] == 1.0
        and float_row["max_abs_diff"] < 1e-5
        and float_row["ok"] is True
    )
    assert (
        float_row["top1"] > 0.8
        and 0 < float_row["latency_ms"]["runs"] <= 192
        and float_row["latency_ms"]["p99"] is None
    )
    assert float_row["first_run_ms"] > 0 and float_row["load_ms"] > 0
    if runtime.isa() in runtime.TARGETS:
        assert here["ok"] is True and here["latency_ms"]["p50"] > 0
    assert other["ok"] is None and other["latency_ms"] is None and other["peak_memory_bytes"] is None
    assert other["note"].startswith("built for ") and other["note"] in done.stdout
    assert "small.fp32.onnx" in done.stdout


def test_sustained_runs_the_file_for_this_machine(copied: Path) -> None:
    done = _run(copied, "--json", "../answer.json", "--repeats", "2", "--sustained", "1")

    answer = json.loads((copied.parent / "answer.json").read_text())
    assert done.returncode == 0 and [row["file"] for row in answer["models"] if row["sustained"]] == [answer["file"]]
    assert answer["file"] == ("here.onnx" if runtime.isa() in runtime.TARGETS else "small.fp32.onnx")
    assert f"the file for this machine: {answer['file']}" in done.stdout
    found = next(row["sustained"] for row in answer["models"] if row["sustained"])
    assert found["runs"] > 10 and found["seconds"] >= 1 and found["sentence"] in done.stdout
    assert _run(copied, "--sustained", "-1").returncode == 2


def test_verifying_twice_changes_nothing(copied: Path) -> None:
    first = _run(copied, "--json", "answer.json", "--repeats", "2", "--model", "small.fp32")
    second = _run(copied, "--json", "answer.json", "--repeats", "2", "--model", "small.fp32.onnx")

    assert (first.returncode, second.returncode) == (0, 0), second.stderr
    assert len(json.loads((copied / "answer.json").read_text())["models"]) == 1


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    "name", ["small.fp32.onnx", "samples.npz", "manifest.json", "export/runtime/latency.py", "README.md"]
)
def test_one_changed_bit_is_refused(copied: Path, name: str, capsys: pytest.CaptureFixture) -> None:
    _flip(copied / name)

    assert verify.main([str(copied)]) == 4
    assert capsys.readouterr().err == f"{name} was changed: its sha256 is not the one in checksums.sha256\n"


def test_missing_and_additional_files_are_refused(copied: Path, capsys: pytest.CaptureFixture) -> None:
    (copied / "extra.bin").write_bytes(b"x")
    assert verify.main([str(copied)]) == 4
    assert capsys.readouterr().err.startswith("extra.bin does not belong to the bundle")

    (copied / "extra.bin").unlink()
    (copied / "here.onnx").unlink()
    assert verify.main([str(copied)]) == 4
    assert capsys.readouterr().err.startswith("here.onnx is missing from the bundle")


def _sign(folder: Path) -> None:
    """New checksums: what follows is about wrong answers, not about changed files."""
    names = [line.split("  ")[1] for line in (folder / "checksums.sha256").read_text().splitlines()]
    lines = [f"{write._described(folder / name)['sha256']}  {name}\n" for name in names]
    (folder / "checksums.sha256").write_text("".join(lines))


@pytest.mark.parametrize("name", ["small.fp32.onnx", "here.onnx"])
def test_wrong_answers_fail(copied: Path, name: str, capsys: pytest.CaptureFixture) -> None:
    if name == "here.onnx" and runtime.isa() not in runtime.TARGETS:
        pytest.skip("no int8 file is meant for this machine")
    model = onnx.load(str(copied / name))
    # The last product's weights change sign, as a broken kernel might: its output is negated.
    last = next(node for node in model.graph.node if node.output[0] == "logits")
    last.output[0] = "right"
    model.graph.node.append(onnx.helper.make_node("Neg", ["right"], ["logits"]))
    (copied / name).write_bytes(model.SerializeToString())
    _sign(copied)

    assert verify.main([str(copied), "--model", name, "--repeats", "1"]) == 4
    assert "WRONG ANSWERS" in capsys.readouterr().out


def test_small_float_differences_pass_and_large_ones_do_not(copied: Path) -> None:
    for shift, expected in ((1e-4, 0), (0.5, 4)):
        with np.load(copied / "samples.npz") as stored:
            arrays = {name: stored[name] for name in stored.files}
        arrays["logits/small.fp32.onnx"] = arrays["logits/small.fp32.onnx"] + np.float32(shift)
        np.savez(copied / "samples.npz", **arrays)
        _sign(copied)

        assert verify.main([str(copied), "--model", "small.fp32", "--repeats", "1"]) == expected


def test_a_model_for_another_machine_verifies_nothing(copied: Path, capsys: pytest.CaptureFixture) -> None:
    assert verify.main([str(copied), "--model", "other"]) == 4
    assert "nothing was verified" in capsys.readouterr().out


def test_usage_errors_and_missing_files_have_their_exit_codes(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "empty").mkdir()

    assert verify.main([str(tmp_path / "empty")]) == 3
    assert verify.main([str(copied), "--model", "nobody"]) == 2
    assert "no model 'nobody' in the bundle; it has small.fp32.onnx, here.onnx, other.onnx" in capsys.readouterr().err
    for wrong in (["--threads", "0"], ["--bogus"]):
        with pytest.raises(SystemExit) as ended:
            verify.main([str(copied), *wrong])
        assert ended.value.code == 2


def test_missing_onnxruntime_is_exit_3(copied: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _ISOLATED.replace('"torch", "onnx"', '"onnxruntime"')],
        cwd=copied,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 3
    assert done.stderr.strip().endswith("python -m pip install -r requirements.txt")
