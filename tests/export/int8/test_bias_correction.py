"""Bias correction takes back what quantisation shifts a layer's mean by."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from export.graph import layers
from export.graph.from_torch import to_onnx
from export.int8 import bias_correction
from export.int8.quantize import QuantizeSettings, emit, prepare
from export.runtime import Contract, Model


@pytest.fixture(scope="module")
def shifted(network: nn.Module, contract: Contract, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with one scale a tensor and one loud channel: all other weights round down, so the outputs shift."""
    net = copy.deepcopy(network)
    with torch.no_grad():
        weight = net.pointwise[0].weight
        step = 4.0 / 127
        weight.copy_(torch.full_like(weight, 0.45 * step))
        weight[0, 0] = 4.0
        net.pointwise[1].weight.fill_(1.0)
        net.pointwise[1].running_var.fill_(1.0)
        net.pointwise[1].running_mean.fill_(0.0)
    path = tmp_path_factory.mktemp("shifted") / "f.onnx"
    to_onnx(net, path, contract)
    return path


def _mean_logits(path: Path, images: np.ndarray) -> np.ndarray:
    return Model.load(path).run(images).mean(axis=0)


def test_bias_correction_reduces_a_planted_mean_shift(
    shifted: Path, calibration: np.ndarray, images: np.ndarray, tmp_path: Path
) -> None:
    prepared = prepare(shifted, calibration)
    for name, correct in (("plain", False), ("corrected", True)):
        emit(prepared, tmp_path / name, QuantizeSettings("x86-vnni", per_channel=False, bias_correction=correct))
    expected = _mean_logits(shifted, images)

    plain, corrected = (
        np.abs(_mean_logits(tmp_path / name, images) - expected).max() for name in ("plain", "corrected")
    )

    assert plain > 0.05  # or there was nothing to correct
    assert corrected < 0.25 * plain


def test_the_correction_is_the_mean_difference_of_the_layer(
    shifted: Path, calibration: np.ndarray, tmp_path: Path
) -> None:
    """In the first layer the correction is float mean minus int8 mean: only the pixels are quantised in front of it."""
    from export.int8 import range_choice
    from export.int8.qdq import nodes_before_first_layer
    from export.int8.quantize import _with_pairs

    prepared = prepare(shifted, calibration)
    settings = QuantizeSettings("x86-vnni", per_channel=False)
    found = range_choice.choose_ranges(prepared.statistics, "minmax")
    quantized = _with_pairs(prepared.model, found, settings, tuple(nodes_before_first_layer(prepared.model)))

    corrected = bias_correction.corrected(prepared.model, quantized, calibration, prepared.runtime)

    first = layers.layers(prepared.model)[0]
    same = next(node for node in quantized.graph.node if node.name == first.name)
    means = []
    for model, output in ((prepared.model, first.output[0]), (quantized, same.output[0])):
        session = bias_correction._session(bias_correction._with_outputs(model, [output]))
        means.append(
            session.run([output], prepared.runtime.feed(calibration))[0].astype(np.float64).mean(axis=(0, 2, 3))
        )
    before, after = (
        numpy_helper.to_array(layers.stored(model)[layers.layers(model)[0].input[2]])
        for model in (prepared.model, corrected)
    )
    assert np.abs(after - before).max() > 1e-3
    assert after - before == pytest.approx(means[0] - means[1], abs=1e-4)  # the file's own bias is rounded to 32 bits


def test_a_float_layer_keeps_its_bias(shifted: Path, calibration: np.ndarray, tmp_path: Path) -> None:
    prepared = prepare(shifted, calibration)
    emit(
        prepared,
        tmp_path / "q.onnx",
        QuantizeSettings("x86-vnni", per_channel=False, float_layers=("first",), bias_correction=True),
    )
    first = layers.layers(prepared.model)[0]
    before = numpy_helper.to_array(layers.stored(prepared.model)[first.input[2]])
    written = onnx.load(str(tmp_path / "q.onnx"))
    node = next(node for node in written.graph.node if node.name == first.name)

    assert np.array_equal(numpy_helper.to_array(layers.stored(written)[node.input[2]]), before)


def test_shared_and_missing_biases_become_the_layers_own() -> None:
    make = onnx.helper.make_node
    nodes = [
        make("Conv", ["x", "w", "b"], ["y"], "a"),
        make("Conv", ["y", "w", "b"], ["z"], "b"),
        make("Conv", ["z", "w"], ["out"], "c"),
    ]
    weights = [
        numpy_helper.from_array(np.ones((2, 2, 1, 1), np.float32), "w"),
        numpy_helper.from_array(np.array([1, 2], np.float32), "b"),
    ]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], weights))

    found = bias_correction.biases(model)

    assert {name: value.tolist() for name, value in found.items()} == {"a": [1, 2], "b": [1, 2], "c": [0, 0]}
    assert len({node.input[2] for node in model.graph.node}) == 3
