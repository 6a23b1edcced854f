"""The contract in the file, the session, and what is known of the host."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from export import runtime
from export.runtime import Contract, ExportError, Model, UnavailableError


def test_contract_round_trips_through_metadata(contract: Contract) -> None:
    stored = contract.to_metadata()

    assert Contract.from_metadata({**stored, "other": "x"}) == contract
    assert all(key.startswith("compress.") for key in stored)
    assert json.loads(stored["compress.classes"]) == list(contract.classes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layout": "uint8_nchw"}, "layout 'uint8_nchw' is not one of"),
        ({"classes": ()}, "at least one class"),
        ({"std": (0.2, 0.0, 0.2)}, "std above 0"),
        ({"mean": (0.2, float("nan"), 0.2)}, "finite"),
    ],
)
def test_contract_refuses_impossible_values(contract: Contract, change: dict, words: str) -> None:
    with pytest.raises(ExportError, match=words):
        dataclasses.replace(contract, **change)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"compress.mean": None}, "has no 'compress.mean'"), ({"compress.std": "[1, 2"}, "cannot be read")],
)
def test_damaged_metadata_is_refused(contract: Contract, change: dict, words: str) -> None:
    stored = {key: value for key, value in {**contract.to_metadata(), **change}.items() if value is not None}

    with pytest.raises(ExportError, match=words):
        Contract.from_metadata(stored)


def test_normalize_follows_the_definition(contract: Contract, images: np.ndarray) -> None:
    expected = (images[:4].astype(np.float64) / 255 - contract.mean) / contract.std

    found = runtime.normalize(images[:4], contract)

    assert found.dtype == np.float32 and found.flags.c_contiguous
    np.testing.assert_allclose(found, expected.transpose(0, 3, 1, 2), atol=2e-6)


def test_run_does_not_depend_on_the_batch(fp32: Path, images: np.ndarray) -> None:
    model = Model.load(fp32)

    whole, parts = model.run(images[:10]), model.run(images[:10], batch=3)

    assert whole.shape == (10, 4) and whole.dtype == np.float32
    np.testing.assert_allclose(whole, parts, atol=1e-4)
    assert model.run(images[:0]).shape == (0, 4)
    assert model.load_ms > 0 and model.target is None


@pytest.mark.parametrize(
    ("shape", "kind"), [((1, 16, 16, 3), np.float32), ((1, 8, 16, 3), np.uint8), ((16, 16, 3), np.uint8)]
)
def test_run_refuses_images_of_another_shape_or_type(fp32: Path, shape: tuple[int, ...], kind: type) -> None:
    wrong = np.zeros(shape, kind)

    with pytest.raises(ExportError, match=r"images must be uint8 \(N, 16, 16, 3\)"):
        Model.load(fp32).run(wrong)


def test_load_names_what_is_wrong(fp32: Path, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(fp32.read_bytes()[:500])
    foreign = onnx.load(str(fp32))
    del foreign.metadata_props[:]
    onnx.save(foreign, str(tmp_path / "foreign.onnx"))

    with pytest.raises(UnavailableError, match="no such file"):
        Model.load(tmp_path / "absent.onnx")
    with pytest.raises(ExportError, match="cannot load this file"):
        Model.load(garbage)
    with pytest.raises(ExportError, match="no 'compress.classes'"):
        Model.load(tmp_path / "foreign.onnx")
    with pytest.raises(ExportError, match="threads must be at least 1"):
        Model.load(fp32, threads=0)


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "expected"),
    [
        ("x86_64", "flags\t\t: fpu avx2 avx512_vnni", "x86-vnni"),
        ("AMD64", "flags\t\t: avx2 avx_vnni", "x86-vnni"),
        ("x86_64", "flags\t\t: fpu avx2", "x86-avx2"),
        ("x86_64", "flags\t\t: fpu sse4_2", "x86"),
        ("x86_64", None, "x86"),
        ("aarch64", None, "arm64"),
        ("arm64", None, "arm64"),
        ("riscv64", None, "riscv64"),
    ],
)
def test_isa_follows_the_flags(
    monkeypatch: pytest.MonkeyPatch, machine: str, cpuinfo: str | None, expected: str
) -> None:
    monkeypatch.setattr(runtime.machine.platform, "machine", lambda: machine)
    monkeypatch.setattr(runtime.machine, "_read", lambda path: cpuinfo)

    assert runtime.isa() == expected


def test_host_facts_are_none_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.machine, "_read", lambda path: None)

    host = runtime.host()

    assert host["memory_bytes"] is None and host["environment"] == {"virtual": None, "governor": None}
    assert host["cores"] >= 1 and json.loads(json.dumps(host)) == host


@pytest.mark.parametrize(
    ("target", "isa", "expected"),
    [
        (None, "riscv64", True),
        ("arm64", "arm64", True),
        ("arm64", "x86-vnni", False),
        ("x86-avx2", "x86-vnni", True),
        ("x86-vnni", "x86-avx2", False),
    ],
)
def test_runs_on(target: str | None, isa: str, expected: bool) -> None:
    assert runtime.runs_on(target, isa) is expected


def test_runtime_and_verify_import_no_other_package() -> None:
    code = (
        "import sys, export.runtime, export.runtime.latency, export.verify; "
        "print(sorted({'torch', 'onnx', 'compress'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
