"""The device's answer comes from the bundle alone, and a changed bundle is refused."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from compress.core.errors import StageError
from compress.recipe.schema import Device
from compress.stages import device

pytestmark = pytest.mark.slow

DEVICE_KEYS = {
    "target",
    "file",
    "sha256",
    "precision",
    "host",
    "cpu",
    "onnxruntime",
    "top1",
    "agreement",
    "max_abs_diff",
    "latency_ms",
} | {
    "role",
    "images",
    "peak_memory_bytes",
    "ok",
    "isa",
    "cores",
    "memory_bytes",
    "python",
    "built_for",
    "note",
    "not_timed",
    "speedup_over",
    "photos",
    "first_run_ms",
    "load_ms",
    "contaminated",
    "disturbances",
    "conditions",
    "photo_latency_ms",
    "photo_to_answer",
    "sustained",
    "remarks",
    "provider",
}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def verified(context, measured):
    return device.run_device(
        Device(), context=context("device"), bundle=measured.bundle, threads=1, host={}, versions={}
    )


def test_every_model_answers_as_expected(verified, measured, models):
    assert verified.ok and [set(row) for row in verified.rows] == [DEVICE_KEYS] * 3
    for row, model in zip(verified.rows, models, strict=True):
        assert (row["file"], row["sha256"], row["precision"]) == (model.name, model.file.sha256, model.precision)
        assert (row["target"], row["images"], row["agreement"], row["ok"]) == ("local", 20, 1.0, True)
        assert row["max_abs_diff"] < 1e-4 and row["latency_ms"]["p50"] > 0
    with zipfile.ZipFile(measured.bundle.path) as archive, archive.open("bundle/samples.npz") as stream:
        samples = dict(np.load(io.BytesIO(stream.read())))
    for row in verified.rows:
        assert row["top1"] == (samples[f"logits/{row['file']}"].argmax(axis=1) == samples["labels"]).mean()


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """A well-formed zip with changed members; None leaves one out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = change(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
    return target


def flipped(content: bytes) -> bytes:
    return content[:-40] + bytes([content[-40] ^ 1]) + content[-39:]


@pytest.mark.parametrize("member", ["student.int8.onnx", "samples.npz", "manifest.json", "export/runtime/__init__.py"])
def test_a_changed_byte_is_refused(tmp_path, measured, member):
    bundle = rewritten(
        measured.bundle.path,
        tmp_path / "b.zip",
        lambda name, content: flipped(content) if name.endswith(member) else content,
    )
    with pytest.raises(
        StageError, match=rf"device local: the bundle's verifier ended with [1-9]: .*({member}|Error)"
    ) as raised:
        device.verify_local(bundle, tmp_path)
    assert raised.value.exit_code == 4 and not (tmp_path / "answer.json").exists()


def test_a_missing_file_is_refused_and_an_old_answer_does_not_count(tmp_path, measured):
    (tmp_path / "answer.json").write_text(json.dumps({"models": [], "ok": True}))
    bundle = rewritten(
        measured.bundle.path,
        tmp_path / "b.zip",
        lambda name, content: None if name.endswith("teacher.onnx") else content,
    )
    with pytest.raises(StageError, match="teacher.onnx is missing from the bundle"):
        device.verify_local(bundle, tmp_path)


@pytest.mark.parametrize(
    "damage", [lambda c: c[: len(c) // 2], lambda c: b"", lambda c: c[:5000] + bytes([c[5000] ^ 0xFF]) + c[5001:]]
)
def test_a_damaged_zip_is_a_stage_error(tmp_path, measured, damage):
    (tmp_path / "b.zip").write_bytes(damage(measured.bundle.path.read_bytes()))
    with pytest.raises(StageError, match="b.zip is damaged .*; make it again with: compress run"):
        device.verify_local(tmp_path / "b.zip", tmp_path)


def test_another_export_on_pythonpath_is_not_used(tmp_path, measured, monkeypatch):
    (tmp_path / "trap" / "export").mkdir(parents=True)
    for name in ("__init__", "runtime", "measure", "verify"):
        (tmp_path / "trap" / "export" / f"{name}.py").write_text("raise SystemExit('the trap')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "trap"))
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    assert device.verify_local(measured.bundle.path, tmp_path).ok


def test_a_verifier_that_does_not_answer_is_a_stage_error(tmp_path, measured, monkeypatch):
    monkeypatch.setattr(device, "LIMIT_SECONDS", 0.01)
    with pytest.raises(StageError, match="did not answer within 0.01 seconds"):
        device.verify_local(measured.bundle.path, tmp_path)


AUDITED = """
import runpy, sys
opened = []
sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
sys.argv = ["verify", "--json", sys.argv[1], "."]
try:
    runpy.run_module("export.verify", run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert not end.code, end.code
assert not {"torch", "onnx", "compress"} & set(sys.modules)
print("\\n".join(opened))
"""


def test_the_verifier_opens_the_bundle_and_the_interpreter_alone(tmp_path, measured):
    with zipfile.ZipFile(measured.bundle.path) as archive:
        archive.extractall(tmp_path)
    answer = tmp_path / "answer.json"
    command = [sys.executable, "-c", AUDITED, str(answer)]
    done = subprocess.run(command, cwd=tmp_path / "bundle", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    paths = {(tmp_path / "bundle" / line).resolve() for line in done.stdout.splitlines() if not line.isdigit()}
    allowed = [
        tmp_path / "bundle",
        answer,
        *(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")),
    ]
    system = [
        Path(name)
        for name in ("/proc", "/sys", "/dev", "/etc", "/usr", "/lib", "/tmp/pymp", sys.base_prefix, sys.prefix)
    ]
    outside = [
        path for path in paths if not any(path == place or path.is_relative_to(place) for place in [*allowed, *system])
    ]
    assert outside == []
    assert not [path for path in paths if path.is_relative_to(ROOT) and not path.is_relative_to(sys.prefix)]
    assert (tmp_path / "bundle" / "student.int8.onnx").resolve() in paths
