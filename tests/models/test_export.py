"""The networks leave as ONNX and as int8: one of each kind, and the larger ones in the slow run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from compress.models import build, catalog
from export.convert import parity, to_onnx
from export.quantize import quantize
from export.rewrites import for_integers
from export.runtime import Contract, Model

CLASSES = tuple("abcde")
LIGHT = ("wrn_16_1", "vgg8", "mobilenet_v1")
LARGER = ("resnet50", "wrn_40_2", "vgg13", "torchvision/efficientnet_b0")


def check(name: str, folder: Path) -> None:
    """Random weights, BatchNorm statistics from noise: torch, float ONNX and int8 give one answer."""
    network = catalog.info(name)
    torch.manual_seed(0)
    model = build(name, classes=len(CLASSES), width=network.widths[0] if network.widths else None)
    noise = torch.randint(0, 256, (96, 3, network.min_size, network.min_size), dtype=torch.uint8)
    contract = Contract(CLASSES, network.min_size, (0.5,) * 3, (0.25,) * 3, "uint8_nhwc", "compress tests")
    with torch.no_grad():
        for _ in range(30):
            model.train()((noise / 255 - 0.5) / 0.25)
    pictures = noise.permute(0, 2, 3, 1).contiguous().numpy()

    to_onnx(model.eval(), folder / "float.onnx", contract, pictures=pictures[:32])
    for_integers(folder / "float.onnx", folder / "source.onnx", pictures[:32])
    source = folder / "source.onnx"
    quantize(source if source.is_file() else folder / "float.onnx", folder / "int8.onnx", pictures, isa="x86-vnni")

    assert parity(model, folder / "float.onnx", pictures).max_abs_diff < 1e-3
    wanted, got = (Model.load(folder / f"{kind}.onnx").run(pictures) for kind in ("float", "int8"))
    centred = [logits - logits.mean(axis=0) for logits in (wanted, got)]  # what the pictures change
    assert np.corrcoef(centred[0].ravel(), centred[1].ravel())[0, 1] > 0.6  # int8 of untrained networks; a wrong layout gives about 0


@pytest.mark.parametrize("name", LIGHT)
def test_network_exports_and_quantises(name: str, tmp_path: Path):
    check(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGER)
def test_larger_network_exports_and_quantises(name: str, tmp_path: Path):
    check(name, tmp_path)
