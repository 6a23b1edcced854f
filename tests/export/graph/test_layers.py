"""A layer that is to stay in float stays there in the graph that onnxruntime executes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from export.graph import layers, onnx_file
from export.graph.executed import audit
from export.int8 import quantize
from export.int8.quantize import QuantizeSettings, emit, prepare
from export.runtime import ExportError, Model


@pytest.fixture(scope="module")
def prepared(fp32: Path, calibration: np.ndarray) -> quantize.PreparedGraph:
    return prepare(fp32, calibration)


@pytest.fixture(scope="module")
def names(prepared: quantize.PreparedGraph) -> list[str]:
    """Layers: stem (Relu behind it), depthwise (Clip), pointwise (a sum), classifier (the logits)."""
    return [node.name for node in layers.layers(prepared.model)]


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_every_kind_of_layer_can_stay_in_float(
    prepared, names, number: int, images: np.ndarray, tmp_path: Path
) -> None:
    made = emit(prepared, tmp_path / "q.onnx", QuantizeSettings("x86-vnni", float_layers=(names[number],)))
    found = audit(tmp_path / "q.onnx")

    assert made.float_layers == (names[number],) and found.requantised == ()
    weights = {tensor.name: tensor.data_type for tensor in onnx.load(str(tmp_path / "q.onnx")).graph.initializer}
    assert sum(kind == onnx.TensorProto.FLOAT for name, kind in weights.items() if name.endswith(".weight")) == 1
    floats = [op for _, op in found.islands if op in ("Conv", "FusedConv", "Gemm", "FusedGemm")]
    assert len(floats) == 1 and 0 < found.int8_mac_share < 1
    assert (
        Model.load(tmp_path / "q.onnx").run(images).argmax(1) == prepared.runtime.run(images).argmax(1)
    ).mean() > 0.95


def test_first_and_last_name_layers_by_position(prepared, names) -> None:
    assert layers.resolve(prepared.model, ("last", "first")) == (names[0], names[-1])


def test_a_layer_renamed_by_onnxruntime_is_found_by_its_old_name(prepared, names) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(prepared.model)
    node = next(node for node in model.graph.node if node.name == names[1])
    node.name = f"{names[1]}/GemmTransposeFusion/"
    assert layers.resolve(model, (names[1],)) == layers.resolve(model, (node.name,)) == (node.name,)


def test_a_float_layer_without_max_and_min_is_requantised_and_refused(
    prepared, names, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without Max and Min behind the layer onnxruntime quantises it on load; this is detected, and the file removed."""
    monkeypatch.setattr(layers, "keep_in_float", lambda model, kept: tuple(kept))

    with pytest.raises(ExportError, match=f"{names[1]} should stay in float, but onnxruntime quantises it again"):
        emit(prepared, tmp_path / "q.onnx", QuantizeSettings("x86-vnni", float_layers=(names[1],)))

    assert not (tmp_path / "q.onnx").exists()


def test_max_and_min_compute_what_clip_computes(prepared, names, images: np.ndarray, tmp_path: Path) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(prepared.model)

    layers.keep_in_float(model, names)
    assert {"Max", "Min"} <= set(onnx_file.op_counts(model)) and not {"Clip", "Relu"} & set(onnx_file.op_counts(model))
    onnx.helper.set_model_props(model, prepared.runtime.contract.to_metadata())
    onnx_file.save(model, tmp_path / "f.onnx")
    assert Model.load(tmp_path / "f.onnx").run(images[:8]) == pytest.approx(prepared.runtime.run(images[:8]), abs=1e-5)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (("frist",), "no layer 'frist'"),
        (("node_conv",), "did you mean|known are first, last"),
        (("first", "last", "all"), "no layer 'all'"),
    ],
)
def test_an_unknown_layer_is_refused(prepared, wanted: tuple[str, ...], words: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=words):
        emit(prepared, tmp_path / "q.onnx", QuantizeSettings("x86-vnni", float_layers=wanted))


def test_keeping_every_layer_in_float_is_refused(prepared, names, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="set scheme: none"):
        emit(prepared, tmp_path / "q.onnx", QuantizeSettings("x86-vnni", float_layers=tuple(names)))
