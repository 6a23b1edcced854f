"""Every method in the training loop: a few steps, a resume, an unchanged teacher, and what ships in onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress import models
from compress.core.records.base import File
from compress.core.records.training import Network, Normalization, Trained, TrainingData
from compress.data import npy
from compress.data.augment import views
from compress.methods import METHODS, Method, build_method
from compress.models import checkpoints
from compress.models.deployed import to_deployed
from compress.models.taps import Tapped
from compress.recipe.schema import Catkd, Crd, Distill, Fitnet, ResolvedTrain, Simkd
from compress.training import build, loop
from compress.training.precision import autocast, resolve_precision
from compress.training.step import TeacherSource
from compress.training.teacher.live import TeacherNetwork
from compress.training.teacher.logit_cache import TeacherCache
from compress.training.teacher.signals import teacher_source

pytestmark = pytest.mark.usefixtures("one_thread")
SIDE, CLASSES, COUNT = 16, 4, 44
NORMALIZATION = Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
STUDENT = Network("resnet8", None, CLASSES, SIDE, NORMALIZATION)
SMALL = {
    "crd": Crd(negatives=8, width=4),
    "catkd": Catkd(side=2),
    "simkd": Simkd(factor=8),
    "fitnet": Fitnet(mode="two_stage", hint_epochs=1),
}
VARIANTS = {
    **{name: Distill(method=name, **SMALL) for name in METHODS},
    "fitnet-joint": Distill(method="fitnet"),
    "dhkd+reviewkd": Distill(method=("dhkd", "reviewkd")),
    "ofd+kd": Distill(method=("ofd", "kd")),
}
TRAIN = ResolvedTrain(epochs=2, batch_size=16, lr=0.02, seed=5, precision="float32")


class PowerCut(Exception):
    """Ends a run without a word, as kill -9 does."""


class Progress:
    """Ends the run after a number of steps."""

    def __init__(self, steps: int = -1) -> None:
        self.left = steps

    def start_at(self, epoch: int, step: int) -> None: ...
    def warn(self, text: str) -> None: ...
    def epoch(self, row: dict[str, float]) -> None: ...

    def step(self, images: int, losses: dict[str, Tensor]) -> None:
        self.left -= 1
        if self.left == 0:
            raise PowerCut


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    random, folder = np.random.default_rng(0), tmp_path_factory.mktemp("data")
    images = random.integers(0, 256, (COUNT, SIDE, SIDE, 3)).astype(np.uint8)
    labels = (np.arange(COUNT) % CLASSES).astype(np.int64)
    return TrainingData(
        npy.write_array(folder / "i.npy", images),
        npy.write_array(folder / "l.npy", labels),
        tuple("abcd"),
        SIDE,
        "crop_flip",
        8,
        0,
    )


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("teacher") / "t.safetensors"
    checkpoints.save_state(models.build("resnet8", classes=CLASSES), path)
    return Trained(STUDENT, File.of(path), 0.5, 1, 1, 1, 1.0)


def start(distill: Distill, teacher: Trained, data: TrainingData) -> tuple[nn.Module, Method, TeacherSource | None]:
    torch.manual_seed(3)
    pictures = build.load_images(data, "cpu")
    student = build.load_network(STUDENT, None, "cpu")
    known = build.outline_of(STUDENT, build.load_network(STUDENT, teacher.weights, "cpu"))
    method = build_method(
        distill,
        student=build.outline_of(STUDENT),
        teacher=known,
        train_labels=pictures.labels,
        train_index=pictures.train_index,
        seed=5,
    )
    teaching = (
        teacher_source(teacher, method, known.taps, data, COUNT, device="cpu", cache=None, warn=pytest.fail)
        if method.needs_teacher
        else None
    )
    return student, method, teaching


def fit(
    folder: Path, data: TrainingData, begun: tuple[nn.Module, Method, TeacherSource | None], steps: int = -1
) -> loop.FitResult:
    folder.mkdir(exist_ok=True)
    student, method, teaching = begun
    return loop.fit(
        student,
        method,
        build.load_images(data, "cpu"),
        train=TRAIN,
        normalization=NORMALIZATION,
        taps=build.outline_of(STUDENT).taps,
        teacher=teaching,
        device="cpu",
        folder=folder,
        progress=Progress(steps),
    )


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.slow
def test_every_method_trains_resumes_and_ships(name, tmp_path, data, teacher):
    whole = start(VARIANTS[name], teacher, data)
    before = {key: value.clone() for key, value in whole[0].state_dict().items()}
    taught = (
        {key: value.clone() for key, value in whole[2].model.state_dict().items()}
        if isinstance(whole[2], TeacherNetwork)
        else {}
    )
    fitted = fit(tmp_path / "whole", data, whole)
    assert any(not torch.equal(value, before[key]) for key, value in whole[0].state_dict().items())
    assert all(np.isfinite(value) for row in fitted.history for value in row.values())
    if taught:
        assert all(torch.equal(value, taught[key]) for key, value in whole[2].model.state_dict().items())

    with pytest.raises(PowerCut):
        fit(
            tmp_path / "parts", data, start(VARIANTS[name], teacher, data), steps=4
        )  # in the second epoch: one is saved
    parts = start(VARIANTS[name], teacher, data)
    fit(tmp_path / "parts", data, parts)
    for one, other in zip(whole[:2], parts[:2], strict=True):
        assert all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())

    shipped = to_deployed(build.load_network(STUDENT, None, "cpu"), STUDENT.model, whole[1].deployed_spec())
    shipped.load_state_dict(whole[1].deployed(whole[0]).state_dict())
    export_and_compare(shipped, tmp_path / "student.onnx")


def export_and_compare(model: nn.Module, path: Path) -> None:
    import export.graph.from_torch
    from export.runtime import Contract

    contract = Contract(
        classes=tuple("abcd"),
        image_size=SIDE,
        mean=NORMALIZATION.mean,
        std=NORMALIZATION.std,
        layout="uint8_nhwc",
        made_by="test",
    )
    pixels = np.random.default_rng(4).integers(0, 256, (5, SIDE, SIDE, 3)).astype(np.uint8)
    export.graph.from_torch.to_onnx(model.eval(), path, contract, opset=18, images=pixels)
    with torch.no_grad():
        largest = (
            model(views.to_float(torch.from_numpy(pixels), NORMALIZATION.mean, NORMALIZATION.std)).abs().max().item()
        )
    assert export.graph.from_torch.parity(model, path, pixels).max_abs_diff <= 1e-5 * max(1.0, largest)


def test_methods_that_read_only_logits_use_the_cache(teacher, data):
    kinds = {name: type(start(distill, teacher, data)[2]) for name, distill in VARIANTS.items()}
    assert {name for name, kind in kinds.items() if kind is TeacherCache} == {"dhkd", "kd", "dkd", "dist"}
    assert {name for name, kind in kinds.items() if kind is type(None)} == {"none"}


def answers(
    teacher: Trained, data: TrainingData, distill: Distill
) -> tuple[TeacherSource, Tensor | None, dict[str, Tensor], Tensor]:
    teaching = start(distill, teacher, data)[2]
    assert teaching is not None
    images = build.load_images(data, "cpu").images[:6]
    index, view = torch.arange(6), torch.full((6,), views.view_count("crop_flip", SIDE) // 2)
    known = teaching.prefetch_logits(index, view, lambda at, _: images[at])
    logits, maps = teaching.forward(known, images)
    return teaching, logits, maps, images


def test_a_live_teacher_in_evaluation_mode_gives_the_cached_logits(teacher, data):
    _, logits, maps, _ = answers(teacher, data, VARIANTS["dhkd+reviewkd"])
    assert torch.equal(logits, answers(teacher, data, VARIANTS["dhkd"])[1])
    assert set(maps) == {"pooled", "stages_pre.1", "stages_pre.2", "stages_pre.3"}
    assert not any(value.requires_grad for value in maps.values())


def test_ofds_teacher_uses_batch_statistics_for_maps_only(teacher, data):
    teaching, logits, maps, images = answers(teacher, data, VARIANTS["ofd+kd"])
    assert torch.equal(logits, answers(teacher, data, VARIANTS["dhkd"])[1])
    model = build.load_network(STUDENT, teacher.weights, "cpu").train()
    roles = build.outline_of(STUDENT).taps
    with (
        torch.no_grad(),
        autocast("cpu", resolve_precision("auto", "cpu")),
        Tapped(model, {"map": roles["stages_pre.1"]}) as tapped,
    ):
        _, wanted = tapped(views.to_float(images, NORMALIZATION.mean, NORMALIZATION.std))
    assert torch.equal(maps["stages_pre.1"], wanted["map"].float())
    state, drifted = (
        teaching.model.state_dict(),
        model.state_dict(),
    )  # the plain training mode changes buffers, the teacher's stay
    assert torch.equal(state["bn1.running_mean"], torch.zeros(16)) and state["bn1.num_batches_tracked"] == 0
    assert not torch.equal(drifted["bn1.running_mean"], torch.zeros(16)) and drifted["bn1.num_batches_tracked"] == 1
    alone = start(VARIANTS["ofd"], teacher, data)[2]
    assert alone is not None and alone.forward(None, images)[0] is None


def test_two_stage_fitnet_first_moves_nothing_above_the_hint(tmp_path, data, teacher):
    student, method, teaching = start(VARIANTS["fitnet"], teacher, data)
    before = {key: value.clone() for key, value in student.named_parameters()}
    with pytest.raises(PowerCut):
        fit(tmp_path / "run", data, (student, method, teaching), steps=3)  # the whole first stage
    moved = {key.split(".")[0] for key, value in student.named_parameters() if not torch.equal(value, before[key])}
    assert moved == {"conv1", "bn1", "layer1", "layer2"}
    fit(tmp_path / "run2", data, (student, method, teaching))
    assert {key.split(".")[0] for key, value in student.named_parameters() if not torch.equal(value, before[key])} >= {
        "layer3",
        "fc",
    }
