"""A tiny network, images and method to train within a second, and ways to interrupt that training."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.core.records.training import Normalization
from compress.data.augment import views
from compress.methods import Method, Outline, build_method
from compress.recipe.schema import Dhkd, Distill, ResolvedSchedule, ResolvedTrain
from compress.training import loop
from compress.training.evaluation import ImageSet
from compress.training.teacher.logit_cache import TeacherCache

SIDE, CLASSES, COUNT, VALIDATION = 8, 3, 52, 12
NORMALIZATION = Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
DHKD = Distill(dhkd=Dhkd(hidden=12, dropout=0.3, head="nonlinear", align="all"))
SHAPE = Outline("net", CLASSES, {"pooled": (6,)})


class Net(nn.Module):
    """(N, 3, 8, 8) -> (N, 3); with `kernel` 8 the BatchNorm sees maps of one pixel."""

    def __init__(self, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, kernel, padding=1 if kernel == 3 else 0, bias=False)
        self.bn = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.bn(self.conv(x))).mean((2, 3)))


class RecordingProgress:
    """Progress that remembers, and may act after a number of steps."""

    def __init__(self, after: int = -1, action: Callable[[], None] | None = None) -> None:
        self.after, self.action = after, action
        self.steps: list[int] = []
        self.rows: list[dict[str, float]] = []
        self.started: tuple[int, int] | None = None
        self.on_epoch: Callable[[], None] | None = None

    def start_at(self, epoch: int, step: int) -> None:
        self.started = (epoch, step)

    def warn(self, text: str) -> None:
        raise AssertionError(text)

    def step(self, images: int, losses: dict[str, Tensor]) -> None:
        self.steps.append(images)
        if len(self.steps) == self.after and self.action is not None:
            self.action()

    def epoch(self, row: dict[str, float]) -> None:
        self.rows.append(row)
        if self.on_epoch is not None:
            self.on_epoch()


class PowerCut(Exception):
    """Ends a run without a word, as kill -9 does."""


def cut_power() -> None:
    raise PowerCut


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def image_set(count: int = COUNT, validation: int = VALIDATION, augment: str = "crop_flip") -> ImageSet:
    """Noise in which the class's channel is brighter."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(count) % CLASSES
    images = torch.randint(0, 190, (count, SIDE, SIDE, 3), generator=generator)
    images += 60 * nn.functional.one_hot(labels, 3)[:, None, None, :]
    return ImageSet(
        images.to(torch.uint8), labels, torch.arange(validation, count), torch.arange(validation), augment, SIDE
    )


def settings(**changes: Any) -> ResolvedTrain:
    values = {
        "epochs": 3,
        "batch_size": 16,
        "lr": 0.05,
        "seed": 7,
        "precision": "float32",
        "schedule": ResolvedSchedule(warmup_epochs=0.0),
    }
    return ResolvedTrain(**{**values, **changes})


def teacher() -> TeacherCache:
    torch.manual_seed(11)
    net = Net().eval().requires_grad_(False)
    return TeacherCache(
        lambda raw: net(views.to_float(raw, NORMALIZATION.mean, NORMALIZATION.std)).float(),
        images=COUNT,
        views=18,
        classes=CLASSES,
        device="cpu",
        folder=None,
        warn=lambda text: None,
    )


def student_and_method(distill: Distill = DHKD, *, net: nn.Module | None = None) -> tuple[nn.Module, Method]:
    torch.manual_seed(5)
    student = (net or Net()).to(memory_format=torch.channels_last)
    return student, build_method(distill, student=SHAPE, teacher=SHAPE, train_labels=torch.zeros(1))


def fit(
    folder: Path,
    student: nn.Module,
    method: Method,
    *,
    config: ResolvedTrain | None = None,
    data: ImageSet | None = None,
    progress: RecordingProgress | None = None,
    device: str = "cpu",
    start_may_ship: bool = False,
) -> loop.FitResult:
    return loop.fit(
        student,
        method,
        data or image_set(),
        train=config or settings(),
        normalization=NORMALIZATION,
        taps={"pooled": "fc:in"},
        teacher=teacher() if method.needs_teacher else None,
        device=device,
        folder=folder,
        progress=progress or RecordingProgress(),
        start_may_ship=start_may_ship,
    )


def state_of(*modules: nn.Module) -> list[Tensor]:
    return [value.clone() for module in modules for value in module.state_dict().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
