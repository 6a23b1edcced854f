"""Networks exported to ONNX and int8: one of each kind, and larger ones in the slow run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from compress.models import build, catalog
from export.graph.from_torch import parity, to_onnx
from export.graph.rewrites import for_integers
from export.int8 import search
from export.int8.integer_share import integer_share
from export.int8.quantize import quantize
from export.runtime import Contract, Model

CLASSES = tuple("abcde")
LIGHT = ("wrn_16_1", "vgg8", "mobilenet_v1")
LARGER = ("resnet50", "torchvision/squeezenet1_1")  # deeper networks of the light kinds have no other operators


def logits(name: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return logits (N, K) of the float and the int8 file for random weights and BatchNorm statistics from noise."""
    network = catalog.info(name)
    torch.manual_seed(0)
    model = build(name, classes=len(CLASSES), width=network.widths[0] if network.widths else None)
    noise = torch.randint(0, 256, (96, 3, network.min_size, network.min_size), dtype=torch.uint8)
    contract = Contract(CLASSES, network.min_size, (0.5,) * 3, (0.25,) * 3, "uint8_nhwc", "compress tests")
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.5  # five passes then outweigh the initial values 31 to 1
    with torch.no_grad():
        for _ in range(5):
            model.train()((noise / 255 - 0.5) / 0.25)
    images = noise.permute(0, 2, 3, 1).contiguous().numpy()
    to_onnx(model.eval(), folder / "float.onnx", contract, images=images[:32])
    for_integers(folder / "float.onnx", folder / "source.onnx", images[:32], integer_share)
    source = folder / "source.onnx"
    quantize(source if source.is_file() else folder / "float.onnx", folder / "int8.onnx", images, isa="x86-vnni")
    assert parity(model, folder / "float.onnx", images).max_abs_diff < 1e-3
    return Model.load(folder / "float.onnx").run(images), search.logits(folder / "int8.onnx", "x86-vnni", images)


def correlation(name: str, folder: Path) -> float:
    """Correlate how float and int8 logits vary with the image; a wrong layout gives about 0."""
    centred = [answers - answers.mean(axis=0) for answers in logits(name, folder)]
    return float(np.corrcoef(centred[0].ravel(), centred[1].ravel())[0, 1])


@pytest.mark.parametrize("name", LIGHT)
@pytest.mark.slow
def test_network_exports_and_quantizes(name: str, tmp_path: Path):
    assert correlation(name, tmp_path) > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGER)
def test_larger_network_exports_and_quantizes(name: str, tmp_path: Path):
    assert correlation(name, tmp_path) > 0.4  # noise through deep untrained networks


@pytest.mark.slow
def test_efficientnet_exports_and_quantizes(tmp_path: Path):
    wanted, got = logits("torchvision/efficientnet_b0", tmp_path)  # untrained, it answers every image alike

    assert np.abs(wanted - got).max() < 0.1
