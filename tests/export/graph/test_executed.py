"""The audit tells what onnxruntime executes, not what the file says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from export import runtime
from export.graph.executed import audit
from export.int8.quantize import quantize
from export.runtime import ExportError

# 8x8 positions after the stem: 16*27, depthwise 16*9, pointwise 16*16; classifier 16*4
MACS = 64 * (16 * 27 + 16 * 9 + 16 * 16) + 16 * 4
LAID = MACS + 64 * 16 * (72 - 27)  # int8 for x86: the stem reads 3 rows of 2 x 4 pixels, most of them times zero

x86_only = pytest.mark.skipif(
    not runtime.isa().startswith("x86"), reason="integer kernels for uint8 activations are those of x86"
)


def test_float_file_has_no_integer_share(fp32: Path) -> None:
    found = audit(fp32)

    assert found.int8_mac_share == 0.0 and found.macs == MACS and found.representative
    assert {op for _, op in found.islands} >= {"Conv"}
    assert "Cast" not in {op for _, op in found.islands}  # pixels are prepared in float by design


@x86_only
def test_int8_file_runs_in_integers(int8: Path) -> None:
    found = audit(int8)

    assert found.int8_mac_share == 1.0 and found.macs == LAID
    assert found.executed["QLinearConv"] == 3 and found.executed["QGemm"] == 1 and "Conv" not in found.executed
    assert found.islands == ()


@x86_only
def test_a_layer_that_runs_in_float_is_listed_as_an_island(int8: Path, tmp_path: Path) -> None:
    """A Sin replaces the Q/DQ pair between two convolutions: both still have int8 weights, and run in float."""
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

    assert found.int8_mac_share == pytest.approx(1 - 64 * (16 * 9 + 16 * 16) / LAID)
    assert sorted(op for _, op in found.islands if op in ("Conv", "Sin")) == ["Conv", "Conv", "Sin"]


def test_another_instruction_set_is_not_representative(fp32: Path, calibration: np.ndarray, tmp_path: Path) -> None:
    other = "x86-vnni" if runtime.isa() == "arm64" else "arm64"
    quantize(fp32, tmp_path / "other.onnx", calibration, isa=other)

    assert not audit(tmp_path / "other.onnx").representative


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"nothing")

    with pytest.raises(ExportError, match="cannot load this file"):
        audit(tmp_path / "x.onnx")


@x86_only
def test_every_float_node_has_a_reason(int8: Path, fp32: Path, calibration: np.ndarray, tmp_path: Path) -> None:
    """One file each: float, int8 activations on x86, a layer that the recipe keeps, an operator without a kernel."""
    assert set(audit(fp32).causes.values()) == {"the file is a float file"}
    quantize(fp32, tmp_path / "s8.onnx", calibration, isa="arm64")
    signed = audit(tmp_path / "s8.onnx")
    assert signed.islands and all(cause.startswith("int8 activations on x86") for cause in signed.causes.values())
    quantize(fp32, tmp_path / "kept.onnx", calibration, isa="x86-vnni", float_layers=("last",))
    kept = audit(tmp_path / "kept.onnx")
    assert {op for _, op in kept.islands} & {"Gemm", "FusedGemm"} and all(
        "kept in float by the recipe" in cause for cause in kept.causes.values()
    )
    assert kept.causes_counted()[0]["count"] == len(kept.causes_counted()[0]["nodes"])
    for op, words in (("HardSigmoid", "rewrite it to Mul, Add and Clip"), ("Sin", "no int8 kernel for Sin")):
        _bend(int8, op, tmp_path / "bent.onnx")
        found = audit(tmp_path / "bent.onnx")
        assert words in found.causes["bent"]
        assert all(
            "not quantised in the file" in found.causes[name]
            for name, kind in found.islands
            if kind in ("Conv", "FusedConv")
        )


def _bend(source: Path, op: str, target: Path) -> None:
    """An operator of float between a DequantizeLinear and the pointwise convolution."""
    model = onnx.load(str(source))
    conv = [node for node in model.graph.node if node.op_type == "Conv"][2]
    model.graph.node.insert(
        list(model.graph.node).index(conv), onnx.helper.make_node(op, [conv.input[0]], ["bent"], name="bent")
    )
    conv.input[0] = "bent"
    target.write_bytes(model.SerializeToString())


def test_a_requantised_float_layer_is_named(int8: Path, tmp_path: Path) -> None:
    """The pointwise layer's weights become float in the file; onnxruntime quantises them when it loads it."""
    model = onnx.load(str(int8))
    conv = [node for node in model.graph.node if node.op_type == "Conv"][2]
    behind = {name: node for node in model.graph.node for name in node.output}
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for position in (1, 2):
        dequantize = behind[conv.input[position]]
        value, scale = stored[dequantize.input[0]], stored[dequantize.input[1]]
        plain = value.astype(np.float32) * scale.reshape(-1, *[1] * (value.ndim - 1))
        model.graph.initializer.append(onnx.numpy_helper.from_array(plain.astype(np.float32), f"plain{position}"))
        conv.input[position] = f"plain{position}"
    (tmp_path / "float.onnx").write_bytes(model.SerializeToString())

    assert audit(int8).requantised == ()
    assert audit(tmp_path / "float.onnx").requantised == (conv.name,)


@x86_only
def test_nodes_of_an_inlined_function_count_as_float(int8: Path, tmp_path: Path) -> None:
    """onnxruntime writes HardSwish out as nodes without names."""
    _bend(int8, "HardSwish", tmp_path / "swish.onnx")

    found = audit(tmp_path / "swish.onnx")

    (name,) = [name for name, op in found.islands if op == "HardSigmoid"]
    assert "rewrite it to Mul, Add and Clip" in found.causes[name]
