"""Integer kernels that add products in pairs, in 16 bits, and files computed as they are written beside them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.bundle import write
from export.bundle.write import Shipped
from export.runtime import METADATA_PREFIX, TARGETS, Contract, Model, isa, saturates

SIDE = 4
WHITE = np.full((2, SIDE, SIDE, 3), 255, np.uint8)
# 48 inputs of 1: weights of 1 and of 64/127, in steps of a quarter. Twice 255 x 127, of the first, exceeds 16 bits;
# twice 255 x 64, of the second, does not.
AS_WRITTEN = [48.0, 24.25]


@pytest.fixture(scope="module")
def two_sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An int8 file for x86 with VNNI whose two logits are sums of all pixels."""
    inputs = 3 * SIDE * SIDE
    stored = {
        "pixel": np.float32(1 / 255),
        "weight": np.float32(1 / 127),
        "quarter": np.float32(0.25),
        "zero": np.uint8(0),
        "signed_zero": np.int8(0),
        "weights": np.tile(np.array([127, 64], np.int8), (inputs, 1)),
        "shape": np.array([-1, inputs]),
        "scale": np.float32(1 / 255),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels", "scale"], ["shares"]),
        helper.make_node("Reshape", ["shares", "shape"], ["vector"]),
        helper.make_node("QuantizeLinear", ["vector", "pixel", "zero"], ["vector_q"]),
        helper.make_node("DequantizeLinear", ["vector_q", "pixel", "zero"], ["vector_dq"]),
        helper.make_node("DequantizeLinear", ["weights", "weight", "signed_zero"], ["weights_dq"]),
        helper.make_node("MatMul", ["vector_dq", "weights_dq"], ["sums"]),
        helper.make_node("QuantizeLinear", ["sums", "quarter", "zero"], ["sums_q"]),
        helper.make_node("DequantizeLinear", ["sums_q", "quarter", "zero"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "two_sums",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    contract = Contract(("large", "small"), SIDE, (0.0,) * 3, (1.0,) * 3, "uint8_nhwc", "compress 9.8.7")
    helper.set_model_props(model, {**contract.to_metadata(), METADATA_PREFIX + "target": json.dumps("x86-vnni")})
    path = tmp_path_factory.mktemp("sums") / "sums.int8.onnx"
    onnx.save(model, str(path))
    return path


def executed(path: Path, work: Path, *, as_written: bool) -> set[str]:
    """The operators that onnxruntime ran."""
    model = Model.load(path, profile=str(work / "profile"), as_written=as_written)
    model.run(WHITE)
    events = json.loads(Path(model.session.end_profiling()).read_text())
    return {event["args"]["op_name"] for event in events if "op_name" in event.get("args", {})}


@pytest.mark.parametrize("target", [None, *TARGETS])
@pytest.mark.parametrize("machine", ["x86-vnni", "x86-avx2", "x86", "arm64", "riscv64"])
def test_only_x86_without_vnni_saturates_on_files_built_for_other_targets(target: str | None, machine: str) -> None:
    expected = machine in ("x86", "x86-avx2") and target in ("x86-vnni", "arm64", "web")
    assert saturates(target, machine) is expected


def test_as_written_gives_the_exact_answers_on_every_machine(two_sums: Path) -> None:
    assert Model.load(two_sums, as_written=True).run(WHITE).tolist() == [AS_WRITTEN] * 2


def test_as_written_uses_no_integer_kernel(two_sums: Path, tmp_path: Path) -> None:
    there = {node.op_type for node in onnx.load(str(two_sums)).graph.node}

    assert executed(two_sums, tmp_path, as_written=True) == there
    assert executed(two_sums, tmp_path, as_written=False) - there == {"QLinearMatMul"}


def test_this_machines_kernels_saturate_exactly_where_saturates_says_so(two_sums: Path) -> None:
    large, small = Model.load(two_sums).run(WHITE)[0].tolist()

    assert small == AS_WRITTEN[1]  # within 16 bits everywhere
    if not saturates("x86-vnni", isa()):
        assert large == AS_WRITTEN[0]
    elif (
        isa() == "x86-avx2"
    ):  # 24 pairs of 32,767 where 64,770 is meant; an x86 that does not show its instructions may have others
        assert large == 24.25


def test_a_bundles_expected_answers_do_not_depend_on_the_machine(two_sums: Path, tmp_path: Path) -> None:
    made = write.write(tmp_path / "bundle", [Shipped(two_sums, "student", "int8", "x86-vnni")], WHITE, np.array([0, 0]))

    with np.load(made.folder / "samples.npz") as stored:
        assert stored["logits/sums.int8.onnx"].tolist() == [AS_WRITTEN] * 2
