"""The recipes of the published pairs: each is checked as a user would, and trains a few steps on stand-in pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from compress import models
from compress.cli import main
from compress.methods import compatibility
from compress.models import checkpoints
from compress.recipe import loader
from compress.recipe.defaults import resolve
from compress.recipe.schema import METHOD_SECTIONS, Recipe
from tests.support.image_stand_in import folders, shards

ROOT = Path(__file__).parents[2]
CIFAR = sorted((ROOT / "recipes" / "cifar100").glob("*.yaml"))
MOBILE = ("mobilenet_v2", "shufflenet_v1", "shufflenet_v2")
# Source: the tables of Yang et al. 2024 (DHKD)
PAIRS = {
    "resnet56-resnet20",
    "resnet110-resnet32",
    "resnet32x4-resnet8x4",
    "wrn_40_2-wrn_16_2",
    "wrn_40_2-wrn_40_1",
    "vgg13-vgg8",
    "resnet32x4-shufflenet_v1",
    "wrn_40_2-shufflenet_v1",
    "vgg13-mobilenet_v2",
    "resnet50-mobilenet_v2",
    "resnet32x4-shufflenet_v2",
}
# the papers' weights: DKD's beta, CAT-KD's weight and side, ReviewKD's weight where its authors published it
WEIGHTS = {
    "resnet56-resnet20": (2, 0.7, 2, 0.6),
    "resnet110-resnet32": (2, 1.8, 2, 1.0),
    "resnet32x4-resnet8x4": (8, 15, 2, 5.0),
    "wrn_40_2-wrn_16_2": (6, 12, 2, 5.0),
    "wrn_40_2-wrn_40_1": (6, 1.5, 2, 5.0),
    "vgg13-vgg8": (6, 4.5, 2, None),
    "resnet32x4-shufflenet_v1": (8, 600, 4, 5.0),
    "wrn_40_2-shufflenet_v1": (8, 80, 4, 5.0),
    "vgg13-mobilenet_v2": (6, 15, 2, None),
    "resnet50-mobilenet_v2": (8, 40, 2, None),
    "resnet32x4-shufflenet_v2": (8, 600, 4, 8.0),
}


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 classes, three training pictures and one test picture of each: noise."""
    random, path = np.random.default_rng(0), tmp_path_factory.mktemp("stand-in") / "cifar100.npz"
    arrays = {
        f"{part}_images": random.integers(0, 256, (100 * count, 32, 32, 3), dtype=np.uint8)
        for part, count in (("train", 3), ("test", 1))
    }
    labels = {f"{part}_labels": np.arange(100 * count) % 100 for part, count in (("train", 3), ("test", 1))}
    np.savez(path, **arrays, **labels, class_names=np.array([f"class {number:02d}" for number in range(100)]))
    return path


def test_there_is_a_recipe_for_every_published_pair() -> None:
    assert {path.stem for path in CIFAR} == PAIRS and len(CIFAR) == 11


@pytest.mark.parametrize("path", CIFAR, ids=lambda path: path.stem)
def test_recipe_has_the_papers_schedule_and_settings(path: Path) -> None:
    loaded: Recipe = loader.load(path).recipe
    teacher, train, distill = loaded.teacher.candidates[0], loaded.train, loaded.distill

    assert f"{teacher.model}-{loaded.student.model}" == path.stem == loaded.name
    for one in (teacher.train, train):
        assert one is not None and (one.epochs, one.batch_size, one.weight_decay, one.momentum, one.nesterov) == (
            240,
            64,
            5e-4,
            0.9,
            False,
        )
        assert (one.schedule.kind, one.schedule.milestones, one.schedule.gamma) == ("step", (150, 180, 210), 0.1)
    assert teacher.train is not None and teacher.train.lr == 0.05
    assert train.lr == (0.01 if loaded.student.model in MOBILE else 0.05)
    beta, cat, side, review = WEIGHTS[path.stem]
    assert (distill.dkd.beta, distill.catkd.cat, distill.catkd.side, distill.catkd.normalize) == (
        beta,
        cat,
        side,
        loaded.student.model in MOBILE,
    )
    assert review in (None, distill.reviewkd.weight)


@pytest.mark.parametrize("path", CIFAR, ids=lambda path: path.stem)
def test_recipe_opens_with_what_it_does_needs_takes_and_its_command(path: Path) -> None:
    head = path.read_text().split("name:")[0]

    assert all(f"# {word}" in head for word in ("What it does:", "What it needs:", "How long:", "Run it:"))
    assert f"compress run recipes/cifar100/{path.name}" in head


@pytest.mark.parametrize("path", CIFAR, ids=lambda path: path.stem)
def test_recipe_passes_the_check(path: Path, stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main.main(
            [
                "check",
                str(path),
                *(f"--set={key}" for key in ("data.source=npz", f"data.root={stand_in}", "data.validation=100")),
            ]
        )
        == 0
    )
    assert f"{path}: ok" in capsys.readouterr().out


@pytest.mark.parametrize("path", CIFAR, ids=lambda path: path.stem)
def test_every_method_can_be_chosen(path: Path) -> None:
    for method in (*METHOD_SECTIONS, "[dhkd, reviewkd]"):
        loaded = loader.load(path, [f"distill.method={method}"])
        assert (loaded.recipe.distill.method, loaded.warnings) == (tuple(method.strip("[]").split(", ")), ())


@pytest.mark.slow
@pytest.mark.parametrize("path", CIFAR, ids=lambda path: path.stem)
@pytest.mark.extended
def test_recipe_trains_a_few_steps(path: Path, stand_in: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    changes = {
        "data.source": "npz",
        "data.root": stand_in,
        "data.image_size": 16,
        "data.validation": 100,
        "train.epochs": 1,
        # 25 small steps: BatchNorm's running statistics of 110 layers must come near the batches', or else logits
        # exceed float16.
        "teacher.candidates.0.train.epochs": 1,
        "teacher.candidates.0.train.batch_size": 8,
        "teacher.candidates.0.train.lr": 1e-3,
    }
    sets = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    artifacts = tmp_path_factory.getbasetemp() / "pairs"  # shared: a teacher of several pairs is trained once

    assert (
        main.main(["run", str(path), *sets, "--artifacts", str(artifacts), "--until", "strip", "--device", "cpu", "-q"])
        == 0
    )


# the papers' weights on ImageNet: DKD's beta, ReviewKD's and CAT-KD's weights
IMAGENET = {"resnet34-resnet18": (0.5, 1.0, 0.5, 0.7331), "resnet50-mobilenet_v1": (2.0, 8.0, 10.0, 0.7613)}
IMAGENET_PATHS = sorted((ROOT / "recipes" / "imagenet").glob("*.yaml"))


@pytest.mark.parametrize("path", IMAGENET_PATHS, ids=lambda path: path.stem)
def test_imagenet_recipe_has_the_papers_schedule_and_settings(path: Path) -> None:
    assert {one.stem for one in IMAGENET_PATHS} == set(IMAGENET)
    loaded: Recipe = loader.load(path).recipe
    train, distill, teacher = loaded.train, loaded.distill, loaded.teacher.candidates[0]
    assert f"{teacher.model}-{loaded.student.model}".replace("torchvision/", "") == path.stem == loaded.name
    assert (train.epochs, train.batch_size, train.lr, train.weight_decay, train.momentum, train.nesterov) == (
        100,
        256,
        0.1,
        1e-4,
        0.9,
        False,
    )
    assert (train.schedule.kind, train.schedule.milestones, train.schedule.gamma, loaded.data.augment) == (
        "step",
        (30, 60, 90),
        0.1,
        "resized_crop",
    )
    assert (distill.dkd.beta, distill.reviewkd.weight, distill.catkd.cat, teacher.expect_top1) == IMAGENET[path.stem]
    assert (
        distill.dhkd.alpha,
        distill.dhkd.stop_epoch,
        distill.kd.temperature,
        distill.dkd.temperature,
        distill.dist.temperature,
    ) == (0.1, 50, 1, 1, 1)
    head = path.read_text().split("name:")[0]
    assert all(f"# {word}" in head for word in ("What it does:", "What it needs:", "How long:", "Run it:"))


@pytest.mark.parametrize("path", IMAGENET_PATHS, ids=lambda path: path.stem)
@pytest.mark.slow
def test_imagenet_recipe_passes_the_check_by_every_method(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["check", str(path)]) == 0
    said = capsys.readouterr()
    assert (
        f"{path}: ok" in said.out
        and "imagenet does not exist; data.root is the folder that holds train/<class>/*.JPEG" in said.out + said.err
    )
    for method in (*METHOD_SECTIONS, "[dhkd, reviewkd]"):
        loaded = loader.load(path, [f"distill.method={method}"])
        assert loaded.warnings == ()
        if method in ("at", "ofd", "reviewkd", "catkd"):  # on networks of this size
            compatibility.check_pairs(loaded, resolve(loaded.recipe), classes=1000, image_size=224)


@pytest.mark.slow
@pytest.mark.parametrize("path", IMAGENET_PATHS, ids=lambda path: path.stem)
@pytest.mark.extended
def test_imagenet_recipe_trains_a_few_steps(path: Path, tmp_path: Path) -> None:
    """One pair from folders by DHKD, one from shards by a method that reads maps; the teacher is a local file."""
    source = {"resnet34-resnet18": "imagenet", "resnet50-mobilenet_v1": "webdataset"}[path.stem]
    root = {"imagenet": folders, "webdataset": shards}[source](tmp_path / "set", train=10, val=2)
    teacher = loader.load(path).recipe.teacher.candidates[0].model
    checkpoints.save_state(models.build(teacher, classes=3, width=None), tmp_path / "teacher.safetensors")
    changes = {
        "data.root": root,
        "data.source": source,
        "data.image_size": 32,
        "data.validation": 6,
        "data.workers": 1,
        "teacher.candidates.0.weights": tmp_path / "teacher.safetensors",
        "teacher.candidates.0.expect_top1": "null",
        "train.epochs": 1,
        "train.batch_size": 8,
        "train.lr": 1e-3,
        "distill.method": {"imagenet": "dhkd", "webdataset": "at"}[source],
    }
    sets = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    command = ["run", str(path), *sets, "--artifacts", str(tmp_path / "a"), "--until", "strip", "--device", "cpu", "-q"]
    assert main.main(command) == 0
    (strip,) = (tmp_path / "a" / "cache" / "strip").glob("*/stage.json")
    assert json.loads(strip.read_text())["result"]["trained"]["epochs"] == 1
