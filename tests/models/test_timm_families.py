"""The contract of timm's networks: each trains a step, is fused, exports, agrees with torch and quantises."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from compress.models import build
from compress.models.count import macs, params
from compress.models.fused import fused
from compress.models.outline import outline
from compress.models.taps import Tapped
from export.graph.from_torch import parity, to_onnx
from export.graph.rewrites import for_integers
from export.int8 import search
from export.int8.integer_share import integer_share
from export.int8.quantize import quantize
from export.runtime import Contract, Model

pytest.importorskip("timm", reason="timm is not installed")

CLASSES = tuple("abcde")
QUICK = (
    "repvit_m0_9",
    "mobilenetv4_conv_small_035",
    "vit_tiny_patch16_224",
)  # one of each kind; the others take minutes


@dataclass(frozen=True)
class Family:
    """A network of a family: how many stages it has, whether branches are fused, how int8 logits follow float ones."""

    name: str
    stages: int
    fused: bool = False
    size: int = 64
    correlation: float | None = 0.8  # None: 8 bits are known to lose its answers


FAMILIES = (
    Family("repvit_m0_9", 4, fused=True),
    Family("fastvit_t8", 4, fused=True),
    Family("mobileone_s0", 4, fused=True),
    Family("ghostnetv3_050", 4, fused=True),
    Family("levit_128s", 0, fused=True),
    Family("efficientvit_m0", 3, fused=True),
    Family("vit_tiny_patch16_dinov3_qkvb", 0),
    Family("vit_tiny_patch16_224", 0),
    Family("dla46_c", 4, correlation=0.4),
    Family("efficientvit_b0", 4, correlation=None),
    Family("mobilevit_xxs", 4),
    Family("swiftformer_xs", 4),
    Family("convnext_atto", 4),
    Family("edgenext_xx_small", 4),
    Family("repghostnet_050", 4, fused=True),
    Family("tf_efficientnet_lite0", 4, correlation=0.6),
    Family("lcnet_050", 4),
    Family("mobilenetv3_small_050", 4),
    Family("mobilenetv4_conv_small_035", 4),
    Family("regnetx_002", 4),
    Family("starnet_s050", 4),
    Family("resnet10t", 4),
    Family("hardcorenas_a", 4),
    Family("mnasnet_small", 4),
    Family("tinynet_e", 4),
)


def trained(family: Family, noise: Tensor) -> nn.Module:
    """Return the network after one step of training and with BatchNorm statistics of noise."""
    torch.manual_seed(0)
    model = build(f"timm/{family.name}", classes=len(CLASSES), image_size=family.size).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pixels, labels = (noise / 255 - 0.5) / 0.25, torch.arange(len(noise)) % len(CLASSES)
    loss = cross_entropy(model(pixels), labels)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)
    optimizer.step()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.5  # five passes then outweigh the initial values 31 to 1
    with torch.no_grad():
        for _ in range(5):
            model(pixels)
    return model.eval()


def marked(family: Family) -> Any:
    mark = pytest.mark.slow if family.name in QUICK else pytest.mark.extended
    return pytest.param(family, marks=mark, id=family.name)


@pytest.mark.parametrize("family", [marked(family) for family in FAMILIES])
def test_family(family: Family, tmp_path: Path):
    name, size = f"timm/{family.name}", family.size
    noise = torch.randint(0, 256, (32, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = noise.permute(0, 2, 3, 1).contiguous().numpy()
    model = trained(family, noise[:16])
    found = outline(name, classes=len(CLASSES), width=None, image_size=size)
    with torch.no_grad(), Tapped(model, found.taps) as tapped:
        logits, maps = tapped((noise[:2] / 255 - 0.5) / 0.25)
    assert logits.shape == (2, len(CLASSES))
    assert {
        tap: tuple(value.shape if tap == "head" else value.shape[1:]) for tap, value in maps.items()
    } == found.shapes
    assert sum(tap.startswith("stages_post") for tap in found.shapes) == family.stages
    form = fused(model, size)
    assert (form.modules > 0) == form.kept == family.fused
    assert 0 < params(form.network) <= params(model) and 0 < macs(form.network, size) <= macs(model, size)
    contract = Contract(CLASSES, size, (0.5,) * 3, (0.25,) * 3, "uint8_nhwc", "compress tests")
    to_onnx(form.network, tmp_path / "float.onnx", contract, images=images[:32])
    for_integers(tmp_path / "float.onnx", tmp_path / "source.onnx", images[:32], integer_share)
    source = tmp_path / "source.onnx" if (tmp_path / "source.onnx").is_file() else tmp_path / "float.onnx"
    quantize(source, tmp_path / "int8.onnx", images, isa="x86-vnni")

    checked = parity(model, tmp_path / "float.onnx", images)
    assert checked.max_abs_diff < 1e-3 * max(1, checked.largest)
    wanted = Model.load(tmp_path / "float.onnx").run(images)
    got = search.logits(tmp_path / "int8.onnx", "x86-vnni", images)
    centred = [answers - answers.mean(axis=0) for answers in (wanted, got)]
    correlation = float(np.corrcoef(centred[0].ravel(), centred[1].ravel())[0, 1])
    if family.correlation is None:
        assert correlation < 0.5  # docs/guides/timm.md says so
    else:
        assert correlation > family.correlation
