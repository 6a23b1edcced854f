"""The audit tells what onnxruntime executes, not what the file says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from export import runtime
from export.audit import audit
from export.quantize import quantize
from export.runtime import ExportError

# 8x8 positions after the stem: 16*27, depthwise 16*9, pointwise 16*16; classifier 16*4
MACS = 64 * (16 * 27 + 16 * 9 + 16 * 16) + 16 * 4

x86_only = pytest.mark.skipif(not runtime.isa().startswith("x86"), reason="integer kernels for uint8 activations are those of x86")


def test_float_file_has_no_integer_share(fp32: Path) -> None:
    found = audit(fp32)

    assert found.int8_mac_share == 0.0 and found.macs == MACS and found.representative
    assert {op for _, op in found.islands} >= {"Conv"}
    assert "Cast" not in {op for _, op in found.islands}  # pixels are prepared in float by design


@x86_only
def test_int8_file_runs_in_integers(int8: Path) -> None:
    found = audit(int8)

    assert found.int8_mac_share == 1.0 and found.macs == MACS
    assert found.executed["QLinearConv"] == 3 and found.executed["QGemm"] == 1 and "Conv" not in found.executed
    assert found.islands == ()


@x86_only
def test_a_layer_that_runs_in_float_is_seen(int8: Path, tmp_path: Path) -> None:
    """Between depthwise and pointwise convolution the Q/DQ pair gives way to a Sin: both still have int8 weights, and run in float."""
    model = onnx.load(str(int8))
    conv = [node for node in model.graph.node if node.op_type == "Conv"][2]
    behind = {name: node for node in model.graph.node for name in node.output}
    pair = behind[conv.input[0]], behind[behind[conv.input[0]].input[0]]
    assert [node.op_type for node in pair] == ["DequantizeLinear", "QuantizeLinear"]
    bend = onnx.helper.make_node("Sin", [pair[1].input[0]], ["bent"], name="bent")  # no integer kernel
    model.graph.node.insert(list(model.graph.node).index(conv), bend)
    conv.input[0] = "bent"
    model.graph.node.remove(pair[0])
    model.graph.node.remove(pair[1])
    (tmp_path / "island.onnx").write_bytes(model.SerializeToString())

    found = audit(tmp_path / "island.onnx")

    assert found.int8_mac_share == pytest.approx(1 - 64 * (16 * 9 + 16 * 16) / MACS)
    assert sorted(op for _, op in found.islands if op in ("Conv", "Sin")) == ["Conv", "Conv", "Sin"]


def test_another_instruction_set_is_not_representative(fp32: Path, calibration: np.ndarray, tmp_path: Path) -> None:
    other = "x86-vnni" if runtime.isa() == "arm64" else "arm64"
    quantize(fp32, tmp_path / "other.onnx", calibration, isa=other)

    assert not audit(tmp_path / "other.onnx").representative


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"nothing")

    with pytest.raises(ExportError, match="cannot load this file"):
        audit(tmp_path / "x.onnx")
