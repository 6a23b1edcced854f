"""The layout of integer kernels: the same function, channels in whole blocks, a stem that reads four pixels as one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from export.graph import float64_reference, surgery
from export.graph.executed import audit
from export.graph.from_torch import to_onnx
from export.int8 import kernel_layout, quantize, search, stem_layout
from export.runtime import Contract, Model, isa

x86_only = pytest.mark.skipif(not isa().startswith("x86"), reason="the layout is for kernels of x86")


class Mobile(nn.Module):
    """A stem, a depthwise convolution with squeeze-and-excitation, and one with concatenated channels."""

    def __init__(self, stem: nn.Conv2d, tied: bool = False) -> None:
        super().__init__()
        self.stem, self.tied = stem, tied
        self.expand = nn.Sequential(
            nn.Conv2d(stem.out_channels, 24, 1), nn.Hardswish(), nn.Conv2d(24, 24, 3, 1, 1, groups=24), nn.Hardswish()
        )
        self.squeeze, self.excite = nn.Conv2d(24, 8, 1), nn.Conv2d(8, 24, 1)
        self.project = nn.Conv2d(24, 12, 1)
        self.classifier = nn.Linear(36 if tied else 12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.expand(nn.functional.relu6(self.stem(x)))
        gate = nn.functional.hardsigmoid(self.excite(torch.relu(self.squeeze(inner.mean((2, 3), keepdim=True)))))
        x = self.project(inner * gate)
        return self.classifier((torch.cat([x, inner], 1) if self.tied else x).mean((2, 3)))


def export(network: nn.Module, contract: Contract, path: Path) -> onnx.ModelProto:
    to_onnx(network.eval(), path, contract)
    return onnx.load(str(path))


def stem_of(model: onnx.ModelProto) -> tuple[list[int], list[int]]:
    """Shape of the first convolution's weights, and its strides."""
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    return list(weight.dims), next(list(attribute.ints) for attribute in node.attribute if attribute.name == "strides")


@pytest.mark.parametrize(("kernel", "pad"), [(3, 1), (3, 0), (5, 2), (7, 3), (2, 0)])
@pytest.mark.slow
def test_a_stem_that_reads_four_pixels_at_once_gives_the_same_answers(
    kernel: int, pad: int, contract: Contract, images: np.ndarray, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    halves = (16 + 2 * pad - kernel) // 2 + 1 == 8
    model = export(Mobile(nn.Conv2d(3, 8, kernel, 2, pad)), contract, tmp_path / "m.onnx")
    before = float64_reference.logits(model, contract, images[:3])

    alike = stem_layout.read_pixels_in_fours(model)

    assert bool(alike) == halves
    if halves:
        (outputs, inputs, _, fours), strides = stem_of(model)
        assert (outputs, inputs, strides) == (16, 12, [2, 1]) and fours < kernel
        onnx.checker.check_model(model, full_check=True)
    np.testing.assert_allclose(float64_reference.logits(model, contract, images[:3]), before, rtol=1e-12, atol=1e-14)


def test_a_stem_with_one_sided_padding_can_read_four_pixels_at_once(
    contract: Contract, images: np.ndarray, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 8, 3, 2, 0)
    network = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), Mobile(stem))
    model = export(network, contract, tmp_path / "m.onnx")
    before = float64_reference.logits(model, contract, images[:3])

    assert stem_layout.read_pixels_in_fours(model)

    np.testing.assert_allclose(float64_reference.logits(model, contract, images[:3]), before, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "stem", [nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(3, 8, 3, 2, 1, dilation=2), nn.Conv2d(3, 9, 3, 2, 1, groups=3)]
)
@pytest.mark.slow
def test_other_stems_are_not_changed(stem: nn.Conv2d, contract: Contract, tmp_path: Path) -> None:
    assert stem_layout.read_pixels_in_fours(export(Mobile(stem), contract, tmp_path / "m.onnx")) == {}


def test_depthwise_convolutions_get_whole_blocks_of_channels(
    contract: Contract, images: np.ndarray, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = export(Mobile(nn.Conv2d(3, 8, 3, 2, 1)), contract, tmp_path / "m.onnx")
    before = float64_reference.logits(model, contract, images[:3])

    assert kernel_layout.fill_blocks(model) == 1

    shapes = {tuple(tensor.dims) for tensor in model.graph.initializer if len(tensor.dims) == 4}
    assert {(32, 8, 1, 1), (32, 1, 3, 3), (8, 32, 1, 1), (32, 8, 1, 1), (12, 32, 1, 1)} <= shapes
    np.testing.assert_allclose(float64_reference.logits(model, contract, images[:3]), before, rtol=1e-12, atol=1e-14)
    surgery.replace(model.graph.value_info, [])
    onnx.checker.check_model(model, full_check=True)
    assert kernel_layout.fill_blocks(model) == 0


def test_concatenated_channels_are_not_widened(contract: Contract, tmp_path: Path) -> None:
    assert (
        kernel_layout.fill_blocks(export(Mobile(nn.Conv2d(3, 8, 3, 2, 1), tied=True), contract, tmp_path / "m.onnx"))
        == 0
    )


def test_shared_weights_are_not_widened(contract: Contract, tmp_path: Path) -> None:
    model = export(Mobile(nn.Conv2d(3, 8, 3, 2, 1)), contract, tmp_path / "m.onnx")
    expand = next(node for node in model.graph.node if node.op_type == "Conv" and "expand" in node.input[1])
    model.graph.node.append(onnx.helper.make_node("Identity", [expand.input[1]], ["elsewhere"], name="shares"))

    assert kernel_layout.fill_blocks(model) == 0


@x86_only
def test_int8_for_x86_uses_the_layout_and_gives_the_same_answers(
    contract: Contract, calibration: np.ndarray, images: np.ndarray, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    export(Mobile(nn.Conv2d(3, 8, 3, 2, 1)), contract, tmp_path / "m.onnx")
    prepared = quantize.prepare(tmp_path / "m.onnx", calibration)
    for name, target, kept in (("x86", "x86-vnni", ()), ("arm", "arm64", ()), ("first", "x86-vnni", ("first",))):
        quantize.emit(prepared, tmp_path / f"{name}.onnx", quantize.QuantizeSettings(target, float_layers=kept))

    stems = {name: stem_of_int8(tmp_path / f"{name}.onnx") for name in ("x86", "arm")}

    assert stems == {"x86": [16, 12, 3, 2], "arm": [8, 3, 3, 3]}
    seen = audit(tmp_path / "x86.onnx")
    assert seen.int8_mac_share == 1.0 and seen.executed["Transpose"] <= 1 and "Clip" not in seen.executed
    expected = Model.load(tmp_path / "m.onnx").run(images)
    for name in ("x86", "first"):
        assert (
            np.abs(search.logits(tmp_path / f"{name}.onnx", "x86-vnni", images) - expected).max()
            < 0.06 * np.abs(expected).max()
        )
    assert "Conv" in audit(tmp_path / "first.onnx").executed


def stem_of_int8(path: Path) -> list[int]:
    model = onnx.load(str(path))
    behind = surgery.producers(model.graph)
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    return next(
        list(tensor.dims) for tensor in model.graph.initializer if tensor.name == behind[node.input[1]].input[0]
    )
