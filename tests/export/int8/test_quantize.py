"""Int8: the settings that keep a network's answers, and a file as clean as the float one."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from export.graph import onnx_file, surgery
from export.graph.from_torch import to_onnx
from export.int8.quantize import QuantizedFile, quantize
from export.runtime import TARGETS, Contract, ExportError, Model


@pytest.fixture(scope="module")
def made(
    fp32: Path, calibration: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, QuantizedFile]]:
    folder = tmp_path_factory.mktemp("int8")
    return {
        isa: (folder / f"{isa}.onnx", quantize(fp32, folder / f"{isa}.onnx", calibration, isa=isa)) for isa in TARGETS
    }


def _agreement(a: Path, b: Path, images: np.ndarray) -> float:
    return float((Model.load(a).run(images).argmax(1) == Model.load(b).run(images).argmax(1)).mean())


def test_per_channel_int8_answers_like_float(made, fp32: Path, images: np.ndarray, labels: np.ndarray) -> None:
    float_top1 = (Model.load(fp32).run(images).argmax(1) == labels).mean()

    path, facts = made["x86-vnni"]

    assert float_top1 > 0.9  # otherwise agreement would mean little
    assert _agreement(fp32, path, images) >= 0.97
    assert facts.calibration_images == 64 and facts.bytes == path.stat().st_size


@pytest.mark.parametrize("isa", TARGETS)
def test_file_keeps_contract_and_interface(made, isa: str, contract: Contract, fp32: Path) -> None:
    path, facts = made[isa]
    model = onnx_file.check(path, opset=18)

    assert Model.load(path).contract == contract and Model.load(path).target == isa
    assert model.ir_version == 8 and facts.isa == isa
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert {path.name for path in path.parent.iterdir()} == {f"{isa}.onnx" for isa in TARGETS}


def _constants(path: Path) -> tuple[onnx.GraphProto, dict[str, np.ndarray]]:
    made = onnx.load(str(path)).graph
    return made, {tensor.name: numpy_helper.to_array(tensor) for tensor in made.initializer}


@pytest.mark.parametrize(
    ("isa", "activations", "largest"),
    [("x86-vnni", np.uint8, 127), ("x86-avx2", np.uint8, 64), ("arm64", np.int8, 127), ("web", np.uint8, 127)],
)
def test_types_and_ranges_follow_the_instruction_set(made, isa: str, activations: type, largest: int) -> None:
    made_graph, constants = _constants(made[isa][0])

    zero_points = [constants[node.input[2]] for node in made_graph.node if node.op_type == "QuantizeLinear"]
    weights = [value for value in constants.values() if value.dtype == np.int8 and value.ndim == 4]

    assert zero_points and all(value.dtype == activations for value in zero_points)
    assert len(weights) == 3 and max(int(np.abs(value.astype(int)).max()) for value in weights) <= largest
    assert min(int(np.abs(value.astype(int)).max()) for value in weights) >= largest - 1  # the whole range is used


def test_weights_have_a_scale_a_channel(made) -> None:
    made_graph, constants = _constants(made["x86-vnni"][0])
    behind = surgery.producers(made_graph)

    scales = [constants[behind[node.input[1]].input[1]] for node in made_graph.node if node.op_type == "Conv"]

    assert [scale.shape for scale in scales] == [(32,), (16,), (16,)]  # the stem answers for two columns at once


def test_pixels_are_prepared_in_float(made) -> None:
    made_graph, _ = _constants(made["x86-vnni"][0])
    ops = [node.op_type for node in made_graph.node]
    first = ops.index("QuantizeLinear")

    assert [op for op in ops[:first] if op != "DequantizeLinear"] == [
        "Cast",
        "Reshape",
        "Mul",
        "Add",
        "Reshape",
        "Transpose",
    ]


def test_the_last_layer_answers_in_float(made, images: np.ndarray) -> None:
    path, facts = made["x86-vnni"]

    assert surgery.producers(onnx.load(str(path)).graph)["logits"].op_type == "Gemm"
    assert len(np.unique(Model.load(path).run(images))) > 512  # more values than two bytes of levels could show


def test_one_scale_a_tensor_starves_quiet_channels(
    network: nn.Module, contract: Contract, calibration: np.ndarray, tmp_path: Path
) -> None:
    net = copy.deepcopy(network)
    with (
        torch.no_grad()
    ):  # depthwise weights 100 times apart, as they are in trained compact networks once BatchNorm is folded
        net.depthwise[1].weight.copy_(net.depthwise[1].weight.sign() * torch.logspace(-2, 0, 16))
    to_onnx(net, tmp_path / "f.onnx", contract)

    def quietest(per_channel: bool) -> int:
        """Largest integer weight of the channel that uses the fewest levels."""
        quantize(tmp_path / "f.onnx", tmp_path / "q.onnx", calibration, isa="x86-vnni", per_channel=per_channel)
        depthwise = next(value for value in _constants(tmp_path / "q.onnx")[1].values() if value.shape == (16, 1, 3, 3))
        return int(np.abs(depthwise.astype(int)).max(axis=(1, 2, 3)).min())

    assert quietest(per_channel=True) == 127
    assert quietest(per_channel=False) < 16


def test_quantising_twice_gives_equal_bytes(fp32: Path, calibration: np.ndarray, made, tmp_path: Path) -> None:
    quantize(fp32, tmp_path / "again.onnx", calibration, isa="arm64")

    assert (tmp_path / "again.onnx").read_bytes() == made["arm64"][0].read_bytes()


def test_calibration_data_sets_the_ranges(fp32: Path, calibration: np.ndarray, made, tmp_path: Path) -> None:
    quantize(fp32, tmp_path / "dark.onnx", calibration // 8, isa="x86-vnni")

    assert (tmp_path / "dark.onnx").read_bytes() != made["x86-vnni"][0].read_bytes()


def test_every_calibration_image_counts(fp32: Path, calibration: np.ndarray, tmp_path: Path) -> None:
    """The one bright image lies in the last, incomplete batch."""
    dark = np.concatenate([calibration[:33] // 8, calibration[:1]])
    quantize(fp32, tmp_path / "a.onnx", dark, isa="x86-vnni")
    quantize(fp32, tmp_path / "b.onnx", dark[:33], isa="x86-vnni")

    def input_scale(name: str) -> float:
        made_graph, constants = _constants(tmp_path / name)
        return float(constants[next(node for node in made_graph.node if node.op_type == "QuantizeLinear").input[1]])

    assert input_scale("a.onnx") > 1.5 * input_scale("b.onnx")


def test_float_layout_calibrates_on_normalised_images(
    network: nn.Module, contract: Contract, calibration: np.ndarray, images: np.ndarray, tmp_path: Path
) -> None:
    to_onnx(network, tmp_path / "f.onnx", dataclasses.replace(contract, layout="float_nchw"))

    quantize(tmp_path / "f.onnx", tmp_path / "q.onnx", calibration, isa="x86-vnni")

    assert _agreement(tmp_path / "f.onnx", tmp_path / "q.onnx", images) >= 0.97


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"isa": "x86-avx2", "per_channel": False}, "needs per-channel weights"),
        ({"isa": "sparc"}, "no int8 settings for 'sparc'"),
        ({"calibrate": "mean"}, "use minmax, entropy, percentile"),
        ({"calibrate": "percentile", "percentile": 99.9}, "99.9 is refused"),
        ({"images": np.zeros((0, 16, 16, 3), np.uint8)}, "at least one image"),
        ({"images": np.zeros((4, 3, 16, 16), np.float32)}, "images must be uint8"),
    ],
)
def test_wrong_arguments_are_refused(
    fp32: Path, calibration: np.ndarray, tmp_path: Path, change: dict, words: str
) -> None:
    arguments = {"images": calibration, "isa": "x86-vnni", **change}

    with pytest.raises(ExportError, match=words):
        quantize(fp32, tmp_path / "q.onnx", **arguments)

    assert not (tmp_path / "q.onnx").exists()
