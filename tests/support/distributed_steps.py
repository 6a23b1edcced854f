"""The script of `test_distributed.py`, alone or under torchrun: two epochs per method in float64, weights by rank 0.

Arguments: working folder, the rank that dies in the second epoch (-1: none), cpu or cuda, methods (norm, recomputed:
kd of a network with BatchNorm).
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from compress.core import distributed
from compress.core.errors import CompressError
from compress.core.records.training import Normalization
from compress.data.streaming.batches import Stream
from compress.data.streaming.listing import ListedPart, Listing, ListingSpec, write_listing
from compress.methods import Outline, build_method
from compress.recipe.schema import Crd, Dhkd, Distill, ResolvedSchedule, ResolvedTrain
from compress.training import loop
from compress.training.evaluation import ImageSet
from compress.training.loop import fit

CLASSES, COUNT, SIDE, WIDTH = 4, 36, 8, 6
METHODS = {
    "dhkd": Distill(method=("dhkd",), dhkd=Dhkd(head="linear", align="all")),
    "kd": Distill(method=("kd",)),
    "norm": Distill(method=("kd",)),
    "recomputed": Distill(method=("kd",)),
    "crd": Distill(method=("crd",), crd=Crd(negatives=16, width=8)),
    "streamed": Distill(method=("kd",)),
    "weighted": Distill(method=("kd",)),
    "balanced": Distill(method=("kd",)),
}
CLASS_WEIGHTS = {"weighted": (0.2, 3.0, 0.5, 0.3)}  # of the classes, in the cross-entropy
SETTINGS = {"recomputed": {"batch_norm": "recomputed"}, "balanced": {"sampling": "balanced"}}
STUDENT = Outline("net", CLASSES, {"pooled": (WIDTH,)}, {"pooled": "fc:in"})
TEACHER = Outline("teacher", CLASSES, {"pooled": (WIDTH,)}, {"pooled": "fc:in"})


class Net(nn.Module):
    """Without `norm` it has no BatchNorm, whose statistics on the CPU are those of one rank's shard."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(WIDTH) if norm else nn.Identity()
        self.conv = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.fc = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.norm(self.conv(x.to(self.fc.weight.dtype)))).mean((2, 3)))


class Teacher:
    """A teacher whose logits and map are functions of the pixels."""

    recordable, prefetch_limit = True, 0

    def prefetch_logits(self, index: Tensor, view: Tensor, pixels: Any) -> Tensor | None:
        return None

    def forward(self, cached_logits: Tensor | None, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        flat = pixels.double().mean((1, 2)) / 255
        return torch.cat([flat, flat[:, :1]], 1) * 3, {"pooled": torch.cat([flat, flat**2], 1)}

    def merge(self, gather: Any) -> None: ...
    def save(self) -> None: ...


class Progress:
    """Prints where training resumes; `dies`: ends the process in the middle of the second epoch."""

    def __init__(self, dies: bool) -> None:
        self.dies, self.steps = dies, 0

    def start_at(self, epoch: int, step: int) -> None:
        print(f"goes on in epoch {epoch} behind step {step}", flush=True)

    def warn(self, text: str) -> None:
        print(f"warned: {text}", flush=True)

    def epoch(self, row: dict[str, float]) -> None: ...

    def step(self, images: int, losses: dict[str, Tensor]) -> None:
        self.steps += 1
        if self.dies and self.steps == 5:
            os._exit(9)


def main(folder: Path, dying: int, where: str, names: list[str]) -> None:
    torch.set_num_threads(1)
    loop.CHECK_EVERY_STEPS, loop.SAVE_SECONDS = 1, -1.0  # a checkpoint behind every step
    signal.signal(
        signal.SIGTERM, lambda *_: None
    )  # torchrun's, for those that are left: first they say what happened, then they end
    with distributed.joined(where) as (group, device):
        for name in names:
            own = folder / (
                name if group.is_main else f"{name}.beside"
            )  # as the store gives each process a folder of its own
            own.mkdir(exist_ok=True)
            train(name, own, group, device, progress=Progress(group.rank == dying), **SETTINGS.get(name, {}))


def filed(images: Tensor, folder: Path) -> ListingSpec:
    """Write each image as a JPEG and list them."""
    from PIL import Image

    names = tuple(f"{number:02d}.jpg" for number in range(COUNT))
    for path, image in zip(names, images.numpy(), strict=True):
        Image.fromarray(image).save(folder / path, quality=95)
    every = np.arange(COUNT)
    sizes = np.array([(folder / path).stat().st_size for path in names])
    rows, _, paths = write_listing(
        ListedPart(names, every, np.zeros_like(every), sizes, names, every % CLASSES), every, folder, "train"
    )
    return ListingSpec(folder, rows.path, paths.path, SIDE)


def images_and_labels() -> tuple[Tensor, Tensor]:
    """Return noise, uint8 (COUNT, SIDE, SIDE, 3), and a class for each image."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (COUNT, SIDE, SIDE, 3), generator=generator)
    return images.to(torch.uint8), torch.arange(COUNT) % CLASSES


def train(
    name: str,
    folder: Path,
    group: distributed.Group,
    device: str,
    *,
    progress: Progress,
    batch_size: int = 15,
    teacher: Any = None,
    **settings: Any,
) -> None:
    """Train two epochs by a method; `settings` are further ones of the training."""
    torch.manual_seed(5 + group.rank)  # the first process's weights count
    images, labels = images_and_labels()
    if name == "balanced":  # 27 images of the first class and 3 of each other
        labels = torch.where(torch.arange(COUNT) < 24, 0, labels)
    pictures = ImageSet(
        *(part.to(device) for part in (images, labels, torch.arange(COUNT), torch.arange(0))), "crop_flip", SIDE
    )
    if name == "streamed":  # the same pictures in files
        stream = Stream(Listing(filed(images, folder)), augment="resized_crop", workers=1, device=device)
        pictures = replace(pictures, images=stream, augment="resized_crop")
    student = Net(name in ("norm", "recomputed")).double().to(device)
    weights = torch.tensor(CLASS_WEIGHTS[name]) if name in CLASS_WEIGHTS else None
    method = build_method(
        METHODS[name], student=STUDENT, teacher=TEACHER, train_labels=labels, seed=1, class_weights=weights
    )
    method = method.double().to(device)
    fit(
        student,
        method,
        pictures,
        train=ResolvedTrain(
            epochs=2,
            batch_size=batch_size,
            lr=0.5,
            precision="float32",
            schedule=ResolvedSchedule(warmup_epochs=0.0),
            **{"seed": 0, **settings},
        ),
        normalization=Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        taps={"pooled": "fc:in"},
        teacher=teacher or Teacher(),
        device=device,
        folder=folder,
        progress=progress,
        group=group,
    )
    if group.is_main or name in SETTINGS:
        state = {**student.state_dict(), **{f"method.{key}": value for key, value in method.state_dict().items()}}
        save_file(
            {key: value.cpu().contiguous().clone() for key, value in state.items()}, folder / "weights.safetensors"
        )


def entry() -> None:
    """Run one process of the test."""
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
        distributed.leave(0)
    except CompressError as error:
        print(f"said: {error}", flush=True)
        distributed.leave(error.exit_code)
