"""The published CIFAR-100 teachers on real test images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from compress.models import build
from compress.models.checkpoints import load_state, read_state

MEAN, STD = (0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761)
COUNT = 500


@pytest.fixture(scope="module")
def cifar100() -> Path:
    root = os.environ.get("COMPRESS_TEST_DATA")
    if not root or not (Path(root) / "cifar100" / "labels.npz").exists():
        pytest.skip("COMPRESS_TEST_DATA names no folder with cifar100/")
    return Path(root) / "cifar100"


@pytest.fixture(scope="module")
def images_and_labels(cifar100: Path) -> tuple[Tensor, Tensor]:
    """Return the first test images, float32 (N, 3, 32, 32) as the teachers expect them, and their labels (N,)."""
    with Image.open(cifar100 / "test-00.webp") as sheet:  # 100 images of 32x32 a row
        rows = np.asarray(sheet.convert("RGB").crop((0, 0, 3200, COUNT // 100 * 32)))
    pixels = rows.reshape(COUNT // 100, 32, 100, 32, 3).transpose(0, 2, 4, 1, 3).reshape(COUNT, 3, 32, 32)
    labels = np.load(cifar100 / "labels.npz")["test_labels"][:COUNT].astype(np.int64)
    scaled = torch.from_numpy(pixels).float() / 255
    return (scaled - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1), torch.from_numpy(labels)


@pytest.mark.parametrize(("name", "least"), [("resnet20", 0.63), ("resnet56", 0.68)])
def test_published_teacher_loads_and_classifies(
    cifar100: Path, images_and_labels: tuple[Tensor, Tensor], name: str, least: float
):
    model = build(name, classes=100).eval()
    load_state(model, read_state(cifar100 / "teachers" / f"{name}.safetensors"), source=f"{name}.safetensors")
    images, labels = images_and_labels

    with torch.inference_mode():
        top1 = (model(images).argmax(1) == labels).double().mean().item()

    assert least < top1 < least + 0.12


@pytest.mark.parametrize("name", ["resnet32", "resnet44"])
def test_the_other_teachers_load(cifar100: Path, name: str):
    kept = load_state(
        build(name, classes=100),
        read_state(cifar100 / "teachers" / f"{name}.safetensors"),
        source=f"{name}.safetensors",
    )

    assert kept == ()
