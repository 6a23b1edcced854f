"""The simulation answers like onnxruntime: the float file within rounding, the int8 file on nearly every image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper
from torch import nn

from compress import models
from export.graph import layers, rewrites
from export.graph.from_torch import to_onnx
from export.int8 import quantize, search
from export.int8.integer_share import integer_share
from export.int8.qat.model import Simulation
from export.int8.qat.operators import OPERATORS, attributes_of, operator
from export.int8.quantize import PreparedGraph, QuantizeSettings
from export.runtime import Contract, ExportError, Model

MEAN, STD = (0.4, 0.45, 0.5), (0.2, 0.25, 0.3)
# One of each kind of network that the catalogue holds; those of a kind differ in depth and width alone.
QUICK = ("resnet8",)
SLOW = (
    "mobilenet_v2",
    "shufflenet_v1",
    "shufflenet_v2",
    "torchvision/mobilenet_v3_small",
    "torchvision/shufflenet_v2_x0_5",
    "torchvision/resnet18",
)


def _pixels(images: np.ndarray, contract: Contract) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (contract.mean, contract.std))
    return (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std


@pytest.fixture(scope="module")
def prepared(fp32: Path, calibration: np.ndarray) -> PreparedGraph:
    return quantize.prepare(fp32, calibration)


@pytest.mark.parametrize(
    ("isa", "per_channel"),
    [("x86-vnni", True), ("x86-vnni", False), ("x86-avx2", True), ("arm64", True), ("arm64", False), ("web", True)],
)
def test_simulation_gives_the_answers_of_the_int8_file(prepared, contract, images, isa, per_channel, tmp_path) -> None:
    settings = QuantizeSettings(isa, per_channel=per_channel)
    pairs = quantize.insert_qdq(prepared, settings)
    quantize.emit(prepared, tmp_path / "q.onnx", settings)

    with torch.no_grad():
        found = Simulation(pairs.model, pairs)(_pixels(images, contract)).numpy()

    expected, floats = search.logits(tmp_path / "q.onnx", isa, images), prepared.runtime.run(images)
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.99
    assert np.abs(found - expected).mean() < 0.1 * np.abs(floats - expected).mean()


def test_learned_weights_and_ranges_end_up_in_the_file(prepared, contract, images, tmp_path) -> None:
    """Other weights and ranges than the calibrated ones arrive in the file exactly."""
    settings = QuantizeSettings("x86-vnni")
    pairs = quantize.insert_qdq(prepared, settings)
    simulation = Simulation(pairs.model, pairs)
    with torch.no_grad():
        for one in simulation.ranges:
            one.change.uniform_(-0.4, 0.1)
        for weight in simulation.weights:
            weight.mul_(1.1)
        found = simulation(_pixels(images, contract)).numpy()

    learned = PreparedGraph(
        layers.with_weights(prepared.model, simulation.learned_weights()), *list(vars(prepared).values())[1:]
    )
    quantize.emit(learned, tmp_path / "q.onnx", settings, simulation.learned_ranges())

    expected = search.logits(tmp_path / "q.onnx", "x86-vnni", images)
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.99
    assert np.abs(expected - prepared.runtime.run(images)).max() > 0.05  # another file than the calibrated one
    written = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(str(tmp_path / "q.onnx")).graph.initializer
    }
    stem = next(
        name for name in written if name.endswith("_in_fours_active_scale")
    )  # its ReLU, where the file reads pixels in fours
    for name, one in simulation._ranges.items():
        assert float(written.get(f"{name}_scale", written[stem])) == float(one.scale()), name


def test_every_range_and_weight_gets_a_gradient_and_a_zero_end_stays_zero(prepared, contract, images) -> None:
    pairs = quantize.insert_qdq(prepared, QuantizeSettings("x86-vnni"))
    simulation = Simulation(pairs.model, pairs)

    simulation(_pixels(images[:32], contract)).square().mean().backward()

    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in simulation.parameters())
    assert all(weight.grad.abs().sum() > 0 for weight in simulation.weights)
    rectified = [one for one in simulation.ranges if one.calibrated[0] == 0]
    assert rectified and all(one.change.grad[0] == 0 and one.ends()[0] == 0 for one in rectified)


def test_taps_show_what_the_next_layer_reads(prepared, contract, images) -> None:
    pairs = quantize.insert_qdq(prepared, QuantizeSettings("x86-vnni"))
    node = next(node for node in pairs.model.graph.node if node.op_type == "Gemm")
    simulation = Simulation(pairs.model, pairs, shown={"pooled": node.input[0]})
    seen = []
    simulation.taps["pooled"].register_forward_hook(lambda _, args, out: seen.append(out))

    logits = simulation(_pixels(images[:8], contract))

    weight = next(name for name in pairs.quantized.graph.node if name.output[0] == logits_input(pairs)).output[0]
    values = simulation.tensors(_pixels(images[:8], contract))
    torch.testing.assert_close(seen[0] @ values[weight].T, logits - values[f"{node.input[2]}"])
    with pytest.raises(
        ExportError, match="tap 'stage': the int8 graph has no tensor nothing: it was merged with its neighbour"
    ):
        Simulation(pairs.model, pairs, shown={"stage": "nothing"})


def logits_input(pairs: quantize.QdqGraphs) -> str:
    return next(node for node in pairs.quantized.graph.node if node.op_type == "Gemm").input[1]


def test_an_unknown_operator_is_refused_by_name(prepared) -> None:
    changed = onnx.ModelProto()
    changed.CopyFrom(prepared.model)
    relu = next(node for node in changed.graph.node if node.op_type == "Relu")
    relu.op_type = "Celu"

    with pytest.raises(ExportError, match="the operator Celu cannot be trained; known are Add, AveragePool"):
        Simulation(changed)
    assert "Celu" not in OPERATORS


def test_weights_of_another_network_are_refused(prepared) -> None:
    with pytest.raises(ExportError, match="has no weight nothing"):
        layers.with_weights(prepared.model, {"nothing": np.zeros(3, np.float32)})


def _warm(name: str) -> nn.Module:
    """A random network whose BatchNorms hold statistics, so that its answers depend on the image."""
    torch.manual_seed(0)
    network = models.build(name, classes=10)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.3)
            norm.momentum = None
        for _ in range(2):
            network.train()(torch.randn(16, 3, 32, 32))
    return network.eval()


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
@pytest.mark.extended
def test_each_kind_of_network_can_be_simulated(name: str, tmp_path: Path) -> None:
    contract = Contract(tuple("abcdefghij"), 32, MEAN, STD, "uint8_nhwc", "compress 9.8.7")
    images = np.random.default_rng(1).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    path, source = tmp_path / "model.onnx", tmp_path / "source.onnx"
    to_onnx(_warm(name), path, contract, images=images)
    rewrites.for_integers(path, source, images, integer_share)
    prepared = quantize.prepare(source if source.is_file() else path, images)
    pixels, pairs = _pixels(images, contract), quantize.insert_qdq(prepared, QuantizeSettings("x86-vnni"))
    quantize.emit(prepared, tmp_path / "q.onnx", QuantizeSettings("x86-vnni"))

    with torch.no_grad():
        floats, integers = Simulation(prepared.model)(pixels).numpy(), Simulation(pairs.model, pairs)(pixels).numpy()

    expected = Model.load(path).run(images)
    np.testing.assert_allclose(floats, expected, atol=1e-4 * np.abs(expected).max())
    written = search.logits(tmp_path / "q.onnx", "x86-vnni", images)
    # Equal in most networks; where a sum ends between two levels, another order of its terms moves what follows.
    assert np.abs(integers - written).mean() < 0.8 * np.abs(written - expected).mean()
    # all that a step reads moves to the device: one that copied would wait for it, and could not be recorded
    assert Simulation(pairs.model, pairs).to("meta")(pixels.to("meta")).shape == (16, 10)


@pytest.mark.parametrize(
    ("op", "shapes", "attributes", "constants"),
    [
        ("AveragePool", [(2, 3, 7, 7)], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, ()),
        ("AveragePool", [(2, 3, 8, 8)], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, ()),
        ("MaxPool", [(2, 3, 8, 8)], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]}, ()),
        ("Slice", [(4, 6)], {}, ([1], [-1], [1], [2])),
        ("Gather", [(4, 6)], {"axis": 1}, ([[0, -1], [2, 3]],)),
        ("Unsqueeze", [(4, 6)], {}, ([0, 3],)),
        ("ReduceMean", [(2, 3, 4, 4)], {"keepdims": 0}, ([2, 3],)),
        ("HardSigmoid", [(4, 6)], {"alpha": 0.3}, ()),
        ("HardSwish", [(4, 6)], {}, ()),
        ("Reshape", [(2, 3, 4)], {}, ([0, -1],)),
        ("Gemm", [(2, 3), (4, 3), (4,)], {"transB": 1, "alpha": 0.5, "beta": 2.0}, ()),
    ],
)
def test_operators_compute_what_onnxruntime_computes(op, shapes, attributes, constants) -> None:
    random = np.random.default_rng(0)
    arrays = [random.normal(0, 2, shape).astype(np.float32) for shape in shapes]
    fixed = [np.array(value, np.int64) for value in constants]
    names = [f"in{place}" for place in range(len(arrays) + len(fixed))]
    node = helper.make_node(op, names, ["out"], name="node", **attributes)
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, array.shape)
        for name, array in zip(names, arrays, strict=False)
    ]
    stored = [
        onnx.numpy_helper.from_array(value, name) for value, name in zip(fixed, names[len(arrays) :], strict=True)
    ]
    out = helper.make_empty_tensor_value_info("out")
    model = helper.make_model(
        helper.make_graph([node], "one", ends, [out], stored), opset_imports=[helper.make_opsetid("", 18)], ir_version=8
    )
    session = onnxruntime.InferenceSession(
        onnx.shape_inference.infer_shapes(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )

    found = operator(node)(attributes_of(node), [torch.from_numpy(array) for array in (*arrays, *fixed)])

    expected = session.run(None, dict(zip(names, arrays, strict=False)))[0]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)
