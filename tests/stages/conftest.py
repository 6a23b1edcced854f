"""One tiny workflow, stage by stage, for the stages' tests: 16x16 images of four classes, resnet8 teaching resnet8."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from compress.core.console import Console
from compress.core.records.deployment import Exported, Measured, ModelFile, Quantized
from compress.core.records.training import Distilled, Network, Prepared, Stripped, Trained, TrainingData
from compress.core.store import Context
from compress.recipe.schema import (
    Data,
    Dhkd,
    Distill,
    Export,
    Quantize,
    ResolvedCandidate,
    ResolvedTrain,
    Validate,
)
from compress.stages import convert, data, distill, quantize, strip, teacher, validate
from export.runtime import TARGETS, isa

SIDE = 16
CLASSES = ("red", "green", "blue", "grey")
TRAIN = ResolvedTrain(epochs=4, batch_size=32, lr=0.1, seed=0, precision="float32")
DHKD = Distill(method="dhkd", dhkd=Dhkd(hidden=8))
VERSIONS = {"torch": "1", "onnx": "1", "onnxruntime": "1"}
TARGET = (
    isa() if isa() in TARGETS else "x86-vnni"
)  # this machine's: a file for another one is neither timed nor audited, and may saturate


def drawn(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise in which one channel (or none) is brighter: uint8 (N, S, S, 3), int64 (N,)."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % len(CLASSES)
    tint = np.eye(4, 3, dtype=np.int64)[labels] * random.integers(0, 26, (count, 1))
    return (random.integers(0, 200, (count, SIDE, SIDE, 3)) + tint[:, None, None, :]).astype(np.uint8), labels.astype(
        np.int64
    )


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def context(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Context]:
    """A fresh working folder by name."""

    def make(name: str) -> Context:
        return Context(
            tmp_path_factory.mktemp(name), "cpu", Console(quiet=True), tmp_path_factory.getbasetemp() / "cache"
        )

    return make


@pytest.fixture(scope="session")
def data_config(tmp_path_factory: pytest.TempPathFactory) -> Data:
    path = tmp_path_factory.mktemp("npz") / "set.npz"
    (train_images, train_labels), (test_images, test_labels) = drawn(200, 1), drawn(120, 2)
    np.savez(
        path,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        class_names=np.array(CLASSES),
    )
    return Data(source="npz", root=str(path), image_size=SIDE, augment="crop_flip", validation=40, calibration=32)


@pytest.fixture(scope="session")
def prepared(context, data_config) -> Prepared:
    return data.run_prepare(data_config, context=context("data"), fingerprint="x")


@pytest.fixture(scope="session")
def training(prepared, data_config) -> TrainingData:
    return data.training(prepared, data_config)


@pytest.fixture(scope="session")
def network(prepared) -> Network:
    return Network("resnet8", None, len(CLASSES), SIDE, prepared.normalization)


@pytest.fixture(scope="session")
def trained_teacher(context, network, training) -> Trained:
    return teacher.run_teacher(
        ResolvedCandidate(model="resnet8", train=TRAIN),
        context=context("teacher"),
        network=network,
        data=training,
        weights=None,
    )


@pytest.fixture(scope="session")
def distilled(context, network, training, trained_teacher) -> Distilled:
    return distill.run_distill(
        DHKD,
        context=context("distill"),
        student=network,
        start="none",
        weights=None,
        teacher=trained_teacher,
        data=training,
        train=TRAIN,
    )


@pytest.fixture(scope="session")
def stripped(context, network, training, trained_teacher, distilled) -> Stripped:
    return strip.run_strip(
        DHKD, context=context("strip"), student=network, teacher=trained_teacher, trained=distilled, data=training
    )


@pytest.fixture(scope="session")
def exported(context, stripped, training) -> Exported:
    return convert.run_convert(
        Export(),
        context=context("convert"),
        model=stripped.trained,
        recorded=stripped.predictions,
        data=training,
        versions=VERSIONS,
    )


@pytest.fixture(scope="session")
def exported_teacher(context, trained_teacher, training) -> Exported:
    return convert.run_convert(
        Export(), context=context("convert"), model=trained_teacher, recorded=None, data=training, versions=VERSIONS
    )


@pytest.fixture(scope="session")
def quantized(context, exported, prepared, data_config) -> Quantized:
    calibration = data.calibration(prepared, data_config)
    return quantize.run_quantize(
        Quantize(), context=context("quantize"), model=exported, data=calibration, target=TARGET, versions=VERSIONS
    )


@pytest.fixture(scope="session")
def models(exported_teacher, exported, quantized) -> tuple[ModelFile, ...]:
    return (
        ModelFile("teacher.onnx", "teacher", "fp32", exported_teacher.file, None, exported_teacher.max_abs_diff),
        ModelFile("student.fp32.onnx", "student", "fp32", exported.file, None, exported.max_abs_diff),
        ModelFile("student.int8.onnx", "student", "int8", quantized.file, quantized.target, None),
    )


@pytest.fixture(scope="session")
def validate_work(context) -> Context:
    return context("validate")


@pytest.fixture(scope="session")
def measured(validate_work, models, prepared) -> Measured:
    return validate.run_validate(
        Validate(warmup=2, repeats=70),
        context=validate_work,
        models=models,
        samples=20,
        test=data.test(prepared),
        host={},
        versions=VERSIONS,
    )


@pytest.fixture
def work(tmp_path: Path) -> Context:
    return Context(tmp_path, "cpu", Console(quiet=True), tmp_path / "cache")


@pytest.fixture(scope="session")
def train() -> ResolvedTrain:
    return TRAIN


@pytest.fixture(scope="session")
def dhkd() -> Distill:
    return DHKD


@pytest.fixture(scope="session")
def versions() -> dict[str, str]:
    return VERSIONS
