"""Float-exact rewrites: what they change, what they leave alone, and that only what is worth it is kept."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from export.graph import float64_reference, onnx_file, rewrites, surgery
from export.graph.executed import audit
from export.graph.from_torch import to_onnx
from export.int8.integer_share import integer_share
from export.int8.quantize import quantize
from export.runtime import Contract, Model, isa

x86_only = pytest.mark.skipif(
    not isa().startswith("x86"), reason="integer kernels for uint8 activations are those of x86"
)


class HardNet(nn.Module):
    """A squeeze-and-excitation block and hard-swish: what MobileNetV3 is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.Hardswish())
        self.squeeze, self.excite = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.last = nn.Sequential(nn.Conv2d(16, 16, 1), nn.Hardswish())
        self.classifier = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        gate = torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))
        x = x * nn.functional.hardsigmoid(self.excite(gate))
        return self.classifier(self.last(x).mean((2, 3)))


@pytest.fixture(scope="module")
def hard(contract: Contract, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("hard") / "hard.onnx"
    to_onnx(HardNet().eval(), path, contract)
    return path


def _ops(path: Path) -> Counter:
    return Counter(node.op_type for node in onnx.load(str(path)).graph.node)


def _model(nodes: list, weights: dict[str, np.ndarray], shape: list[int]) -> onnx.ModelProto:
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims)
        for name, dims in (("x", shape), ("y", None))
    ]
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()]
    made = onnx.helper.make_graph(nodes, "g", values[:1], values[1:], tensors)
    return onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)


def _run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(
        None, {"x": x}
    )[0]


def test_means_over_other_axes_are_not_rewritten() -> None:
    def mean(axes: list[int], keepdims: int, rank: int = 4) -> onnx.ModelProto:
        node = onnx.helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=keepdims, name="mean")
        return _model([node], {"axes": np.array(axes, np.int64)}, [1, 2, 3, 4, 5][:rank])

    assert rewrites.pool_means(mean([1, 2], 1)) == 0
    assert rewrites.pool_means(mean([2, 3], 1, rank=5)) == 0
    flat = mean([-1, -2], 0)
    before = _run(flat, x := np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4))
    assert rewrites.pool_means(flat) == 1
    assert [node.op_type for node in flat.graph.node] == ["GlobalAveragePool", "Flatten"] and flat.graph.node[1].output[
        0
    ] == "y"
    np.testing.assert_array_equal(_run(flat, x), before)


@pytest.mark.parametrize(
    ("op", "attributes"), [("HardSwish", {}), ("HardSigmoid", {}), ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5})]
)
def test_hard_activations_keep_their_values_everywhere(op: str, attributes: dict) -> None:
    x = np.concatenate([np.linspace(-8, 8, 4001), [-3, 3, 0, -1e30, 1e30]]).astype(np.float32)
    model = _model([onnx.helper.make_node(op, ["x"], ["y"], name="hard", **attributes)], {}, [len(x)])
    expected = _run(model, x)

    assert rewrites.expand_hard_activations(model) == 1

    assert not {"HardSwish", "HardSigmoid"} & {node.op_type for node in model.graph.node}
    np.testing.assert_allclose(_run(model, x), expected, rtol=2e-6, atol=3e-7)


def test_pools_are_rewritten_in_the_float_file_and_activations_only_for_int8(
    hard: Path, images: np.ndarray, tmp_path: Path
) -> None:
    verdicts = rewrites.for_integers(hard, tmp_path / "source.onnx", images[:32], integer_share)

    (verdict,) = verdicts
    assert verdict.name == rewrites.HARD and verdict.nodes == 3 and verdict.kept and verdict.files == "int8"
    assert (
        verdict.max_abs_diff <= verdict.limit
        and verdict.images == float64_reference.MAX_IMAGES
        and verdict.float32_diff is not None
    )
    assert (
        verdict.integer_share is not None
        and verdict.rewritten_share is not None
        and verdict.integer_share < verdict.rewritten_share
    )
    assert _ops(hard)["HardSwish"] == 2 and _ops(hard)["GlobalAveragePool"] == 2 and _ops(hard)["ReduceMean"] == 0
    assert not {"HardSwish", "HardSigmoid"} & set(_ops(tmp_path / "source.onnx"))
    assert Model.load(tmp_path / "source.onnx").contract == Model.load(hard).contract
    difference = np.abs(Model.load(hard).run(images) - Model.load(tmp_path / "source.onnx").run(images)).max()
    assert difference <= 2e-6 * np.abs(Model.load(hard).run(images)).max()


def test_exactness_is_judged_in_double_precision(hard: Path, images: np.ndarray) -> None:
    model, contract = onnx.load(str(hard)), Model.load(hard).contract
    reference = float64_reference.logits(model, contract, images[:2])
    assert reference.dtype == np.float64
    np.testing.assert_allclose(reference, Model.load(hard).run(images[:2]), rtol=1e-4, atol=1e-6)

    last = next(tensor for tensor in model.graph.initializer if list(tensor.dims) == [4])
    moved = onnx.numpy_helper.to_array(last).astype(np.float64) + 1e-12  # float32 has no such step at these values
    double = float64_reference.in_double(model)
    next(tensor for tensor in double.graph.initializer if tensor.name == last.name).CopyFrom(
        onnx.numpy_helper.from_array(moved, last.name)
    )
    difference = float64_reference.logits(double, contract, images[:2]) - reference
    np.testing.assert_allclose(difference, 1e-12, rtol=1e-2)


def test_a_network_without_hard_activations_is_not_rewritten(fp32: Path, tmp_path: Path) -> None:
    assert rewrites.for_integers(fp32, tmp_path / "source.onnx", None, integer_share) == ()
    assert not (tmp_path / "source.onnx").exists()


def test_a_rewrite_that_changes_answers_is_refused(
    hard: Path, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = rewrites.expand_hard_activations

    def inexact(model: onnx.ModelProto) -> int:
        count = right(model)
        scalar = next(tensor for tensor in model.graph.initializer if tensor.name == "hard_0")
        scalar.CopyFrom(onnx.numpy_helper.from_array(np.float32(0.1667), "hard_0"))
        return count

    monkeypatch.setattr(rewrites, "expand_hard_activations", inexact)
    (verdict,) = rewrites.for_integers(hard, tmp_path / "source.onnx", images[:8], integer_share)

    assert not verdict.kept and verdict.max_abs_diff > verdict.limit and "above the limit" in verdict.reason
    assert not (tmp_path / "source.onnx").exists()


def test_a_rewrite_that_gains_no_integer_kernel_is_refused(hard: Path, tmp_path: Path) -> None:
    (verdict,) = rewrites.for_integers(hard, tmp_path / "source.onnx", None, lambda path, images: 0.5)

    assert not verdict.kept and (verdict.integer_share, verdict.rewritten_share) == (0.5, 0.5)
    assert not (tmp_path / "source.onnx").exists()


@x86_only
def test_int8_of_the_rewritten_file_is_integer_throughout(
    hard: Path, calibration: np.ndarray, images: np.ndarray, tmp_path: Path
) -> None:
    rewrites.for_integers(hard, tmp_path / "source.onnx", calibration, integer_share)
    quantize(hard, tmp_path / "plain.onnx", calibration, isa="x86-vnni")
    quantize(tmp_path / "source.onnx", tmp_path / "int8.onnx", calibration, isa="x86-vnni")

    plain, rewritten = audit(tmp_path / "plain.onnx"), audit(tmp_path / "int8.onnx")

    assert plain.executed["HardSigmoid"] == 3 and plain.executed["DequantizeLinear"] >= 3
    assert (
        rewritten.executed["QuantizeLinear"] == 1
        and "DequantizeLinear" not in rewritten.executed
        and rewritten.islands == ()
    )
    logits, expected = Model.load(tmp_path / "int8.onnx").run(images), Model.load(hard).run(images)
    assert np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()


@x86_only
def test_products_with_a_scalar_are_absorbed_without_changing_an_integer(
    hard: Path, calibration: np.ndarray, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrites.for_integers(hard, tmp_path / "source.onnx", calibration, integer_share)
    quantize(tmp_path / "source.onnx", tmp_path / "absorbed.onnx", calibration, isa="x86-vnni")
    monkeypatch.setattr(surgery, "absorb_scalar_products", lambda model: 0)
    quantize(tmp_path / "source.onnx", tmp_path / "computed.onnx", calibration, isa="x86-vnni")

    products = [audit(tmp_path / f"{name}.onnx").executed["QLinearMul"] for name in ("absorbed", "computed")]

    assert products == [3, 5]  # two HardSwish times their gate, and the excitation; computed: two more by 1/6
    found, expected = (Model.load(tmp_path / f"{name}.onnx").run(images) for name in ("absorbed", "computed"))
    assert np.abs(found - expected).max() <= 0.02 * np.abs(expected).max()


def test_normalising_by_rows_changes_no_bit(fp32: Path, images: np.ndarray, contract: Contract, tmp_path: Path) -> None:
    model = onnx.load(str(fp32))

    assert surgery.normalise_by_rows(model) == 1

    onnx_file.strip_and_describe(model, contract.to_metadata(), made_by=contract.made_by)
    onnx_file.save(model, tmp_path / "rows.onnx")
    assert [node.op_type for node in model.graph.node][:6] == ["Cast", "Reshape", "Mul", "Add", "Reshape", "Transpose"]
    np.testing.assert_array_equal(Model.load(tmp_path / "rows.onnx").run(images), Model.load(fp32).run(images))
    assert surgery.normalise_by_rows(model) == 0  # it is not what it looks for any more


def test_normalising_by_rows_does_not_touch_float_input(network: nn.Module, contract: Contract, tmp_path: Path) -> None:
    to_onnx(network, tmp_path / "f.onnx", dataclasses.replace(contract, layout="float_nchw"))

    assert surgery.normalise_by_rows(onnx.load(str(tmp_path / "f.onnx"))) == 0


def _calibrated(net: nn.Module, size: int) -> nn.Module:
    """Random weights with statistics of real activations: two passes in training mode."""
    net.train()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(2):
            net(torch.randn(8, 3, size, size, generator=generator))
    return net.eval()


def _whole(
    net: nn.Module, size: int, classes: int, folder: Path
) -> tuple[tuple[rewrites.Rewrite, ...], dict[str, int], float]:
    """Every rewrite's verdict, what the int8 file executes, and its share of integer multiply-accumulates."""
    contract = Contract(
        tuple(map(str, range(classes))), size, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "uint8_nhwc", "compress 1"
    )
    exported = to_onnx(_calibrated(net, size), folder / "f.onnx", contract)
    verdicts = (*exported.rewrites, *rewrites.for_integers(folder / "f.onnx", folder / "s.onnx", None, integer_share))
    source = folder / ("s.onnx" if (folder / "s.onnx").is_file() else "f.onnx")
    quantize(source, folder / "q.onnx", rewrites.noise_images(contract), isa="x86-vnni")
    found = audit(folder / "q.onnx")
    return verdicts, found.executed, found.int8_mac_share


@x86_only
@pytest.mark.slow
def test_mobilenet_v3_small_runs_in_integers_throughout(tmp_path: Path) -> None:
    from torchvision.models import mobilenet_v3_small

    torch.manual_seed(0)
    verdicts, executed, share = _whole(mobilenet_v3_small(weights=None), 96, 1000, tmp_path)

    assert [(verdict.name, verdict.nodes, verdict.kept) for verdict in verdicts] == [
        (rewrites.POOLS, 10, True),
        (rewrites.HARD, 28, True),
    ]
    assert share == 1.0 and executed["QLinearConv"] == 52 and executed["QGemm"] == 2
    assert executed["QuantizeLinear"] == 1 and executed.get("DequantizeLinear", 0) <= 1
    assert executed["Mul"] == executed["Add"] == executed["Cast"] == executed["Transpose"] == 1  # the pixels
    assert not {"Conv", "HardSigmoid", "HardSwish", "ReduceMean", "GlobalAveragePool", "Clip"} & set(executed)


@x86_only
@pytest.mark.slow
def test_mobilenet_v2_at_32_pixels_runs_in_integers_throughout(tmp_path: Path) -> None:
    from torchvision.models import mobilenet_v2

    torch.manual_seed(0)
    verdicts, executed, share = _whole(mobilenet_v2(weights=None, num_classes=10), 32, 10, tmp_path)

    assert [(verdict.name, verdict.nodes) for verdict in verdicts] == [(rewrites.POOLS, 1)] and verdicts[0].kept
    assert share == 1.0 and executed["QLinearConv"] == 52
    assert executed["QuantizeLinear"] == 1 and executed.get("DequantizeLinear", 0) <= 1 and "Conv" not in executed
