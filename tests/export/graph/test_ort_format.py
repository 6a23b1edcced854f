"""Files for a minimal onnxruntime, and the list of kernels that it needs."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from export.graph import ort_format
from export.int8.quantize import quantize
from export.runtime import ExportError, Model, isa

x86_only = pytest.mark.skipif(not isa().startswith("x86"), reason="the kernels named here are those that x86 fuses")


@pytest.fixture(scope="module")
def arm64(fp32: Path, calibration: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("arm64") / "small.arm64.onnx"
    quantize(fp32, path, calibration, isa="arm64")
    return path


def test_ort_file_gives_the_answers_of_the_onnx_file(int8: Path, images: np.ndarray, tmp_path: Path) -> None:
    made = ort_format.to_ort(int8, tmp_path / "small.ort", tmp_path / "small.config", target="x86-vnni")

    converted = Model.load(tmp_path / "small.ort")
    assert converted.contract == Model.load(int8).contract and converted.target == "x86-vnni"
    np.testing.assert_allclose(converted.run(images), Model.load(int8).run(images), atol=1e-4)
    assert (
        made.bytes == (tmp_path / "small.ort").stat().st_size and (tmp_path / "small.ort").read_bytes()[4:8] == b"ORTM"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.config", "small.ort"]


@x86_only
def test_ort_build_needs_few_kernels_and_integer_ones(int8: Path, tmp_path: Path) -> None:
    made = ort_format.to_ort(int8, tmp_path / "small.ort", tmp_path / "small.config", target="x86-vnni")

    assert {"com.microsoft:QLinearConv", "com.microsoft:QGemm", "com.microsoft:QLinearAdd"} <= set(made.operators)
    assert "ai.onnx:Conv" not in made.operators and len(made.operators) <= 12
    text = (tmp_path / "small.config").read_text()
    assert made.config_bytes == len(text) and "#" not in text and str(tmp_path) not in text
    assert 'QLinearConv{"inputs": {"0": ["uint8_t"]}}' in text and text.startswith("ai.onnx;")


def test_each_target_gets_its_own_activation_type(arm64: Path, int8: Path, tmp_path: Path) -> None:
    """x86's session turns int8 activations into uint8 unless it is told that the file is for ARM."""
    ort_format.to_ort(arm64, tmp_path / "arm.ort", tmp_path / "arm.config", target="arm64")
    ort_format.to_ort(int8, tmp_path / "x86.ort", tmp_path / "x86.config", target="x86-vnni")

    assert 'QLinearConv{"inputs": {"0": ["int8_t"]}}' in (tmp_path / "arm.config").read_text()
    assert "uint8_t" not in (tmp_path / "arm.config").read_text().replace(
        'Cast{"inputs": {"0": ["uint8_t"]}', ""
    ).replace('Reshape{"inputs": {"0": ["uint8_t"]}', "")
    assert "int8_t" not in (tmp_path / "x86.config").read_text().replace("uint8_t", "")


def test_a_float_ort_file_is_not_machine_specific(fp32: Path, tmp_path: Path) -> None:
    """Blocked channels are as wide as the converting CPU's registers: no such kernel may be in it."""
    made = {
        target: ort_format.to_ort(fp32, tmp_path / f"{target}.ort", tmp_path / f"{target}.config", target=target)
        for target in ("x86-vnni", "arm64")
    }

    assert not any("nchwc" in name for facts in made.values() for name in facts.operators)
    assert (tmp_path / "x86-vnni.config").read_bytes() == (tmp_path / "arm64.config").read_bytes()


def test_equal_inputs_give_equal_lists_and_sizes(int8: Path, images: np.ndarray, tmp_path: Path) -> None:
    """Bytes of .ort files differ between two conversions: onnxruntime orders their tables by addresses in memory."""
    for name in ("a", "b"):
        ort_format.to_ort(int8, tmp_path / name / "x.ort", tmp_path / name / "x.config", target="x86-vnni")

    assert (tmp_path / "a" / "x.config").read_bytes() == (tmp_path / "b" / "x.config").read_bytes()
    first, second = (Model.load(tmp_path / name / "x.ort").run(images) for name in ("a", "b"))
    np.testing.assert_array_equal(first, second)


def test_no_path_of_this_machine_is_in_a_file(int8: Path, tmp_path: Path) -> None:
    ort_format.to_ort(int8, tmp_path / "x.ort", tmp_path / "x.config", target="x86-vnni")

    for name in ("x.ort", "x.config"):
        data = (tmp_path / name).read_bytes()
        assert str(tmp_path).encode() not in data and str(Path.home()).encode() + b"/" not in data


def test_onnxruntimes_tools_leave_logging_alone(int8: Path, tmp_path: Path) -> None:
    before = (list(logging.root.handlers), logging.root.level, logging.root.manager.disable)

    ort_format.to_ort(int8, tmp_path / "x.ort", tmp_path / "x.config", target="x86-vnni")

    assert (list(logging.root.handlers), logging.root.level, logging.root.manager.disable) == before


@pytest.mark.parametrize(
    ("target", "words"), [("sparc", "no .ort file can be made for 'sparc'"), ("arm64", "was built for x86-vnni")]
)
def test_an_ort_file_for_the_wrong_target_is_refused(int8: Path, tmp_path: Path, target: str, words: str) -> None:
    with pytest.raises(ExportError, match=words):
        ort_format.to_ort(int8, tmp_path / "x.ort", tmp_path / "x.config", target=target)

    assert not list(tmp_path.iterdir())


def test_an_ort_file_with_other_answers_is_removed(int8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_format, "SAME_KERNELS_LIMIT", -1.0)
    monkeypatch.setattr(ort_format, "OTHER_ROUNDING_LIMIT", -1.0)

    with pytest.raises(ExportError, match="x.ort: the answers differ from those of the .onnx file"):
        ort_format.to_ort(int8, tmp_path / "x.ort", tmp_path / "x.config", target="x86-vnni")

    assert not (tmp_path / "x.ort").exists()
