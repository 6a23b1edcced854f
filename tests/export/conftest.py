"""A small trained network and its files, made once for all tests of `export`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from export.graph.from_torch import to_onnx
from export.int8.quantize import quantize
from export.runtime import Contract

SIZE = 16
CLASSES = ("red", "green", "blue", "grey")


class SmallNet(nn.Module):
    """Convolution, depthwise convolution, a residual sum and a mean: what compact networks are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.depthwise = nn.Sequential(
            nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6()
        )
        self.pointwise = nn.Sequential(nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.classifier = nn.Linear(16, len(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.pointwise(self.depthwise(x))
        return self.classifier(x.mean([2, 3]))


def tinted_images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise in which one channel (or none) is brighter: uint8 (N, S, S, 3) and labels (N,)."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, len(CLASSES), count)
    images = random.integers(0, 200, (count, SIZE, SIZE, 3))
    tint = np.eye(4, 3, dtype=np.int64)[labels] * random.integers(20, 56, (count, 1))
    return (images + tint[:, None, None, :]).astype(np.uint8), labels


@pytest.fixture(scope="session")
def contract() -> Contract:
    return Contract(CLASSES, SIZE, (0.4, 0.45, 0.5), (0.2, 0.25, 0.3), "uint8_nhwc", "compress 9.8.7")


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    return tinted_images(256, seed=1)[0]


@pytest.fixture(scope="session")
def labels() -> np.ndarray:
    return tinted_images(256, seed=1)[1]


@pytest.fixture(scope="session")
def calibration() -> np.ndarray:
    return tinted_images(64, seed=2)[0]


@pytest.fixture(scope="session")
def network(contract: Contract) -> nn.Module:
    """Trained on the tinted images, in eval mode."""
    torch.manual_seed(0)
    net = SmallNet()
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    data, answers = tinted_images(512, seed=3)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (contract.mean, contract.std))
    x = (torch.from_numpy(data).permute(0, 3, 1, 2) / 255 - mean) / std
    y = torch.from_numpy(answers)
    for step in range(60):
        part = slice(step % 8 * 64, step % 8 * 64 + 64)
        loss = nn.functional.cross_entropy(net(x[part]), y[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def fp32(network: nn.Module, contract: Contract, folder: Path) -> Path:
    path = folder / "small.fp32.onnx"
    to_onnx(network, path, contract)
    return path


@pytest.fixture(scope="session")
def int8(fp32: Path, calibration: np.ndarray, folder: Path) -> Path:
    path = folder / "small.int8.onnx"
    quantize(fp32, path, calibration, isa="x86-vnni")
    return path
