"""The small network that faults are planted into: eight classes, learnt in seconds.

Four kinds of clothes from the embedded pictures, each in red or in green, on pictures wider than high, so that channel order, range, crop
and class order all matter.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from compress.data.augment.views import to_float
from compress.data.decode import decode_image
from compress.data.sources import fashion
from compress.verdict.diagnosis import Constants
from export.graph.from_torch import to_onnx
from export.runtime import Contract, Model

KINDS = (1, 3, 7, 8)  # trouser, dress, sneaker, bag
# tints of red, green, blue; neither becomes the other when red and blue are exchanged, which would look like classes in another order
COLOURS = {"red": (1.0, 0.45, 0.2), "green": (0.45, 1.0, 0.2)}
CLASSES = tuple(f"{colour} {fashion.CLASSES[kind].lower()}" for kind in KINDS for colour in COLOURS)
SIZE, WIDE, GROUND = 32, 56, 40  # pixels; grey level behind the clothes
RIGHT: Constants = ((0.5,) * 3, (0.5,) * 3)  # what the network learnt with
TRAIN, TEST, EPOCHS = 1600, 480, 8
OUTLIER = 512.0  # times the other weights: of 127 steps up to it, none is left for them


@dataclass(frozen=True)
class Ground:
    """What faults are planted into. Pictures uint8 (N, S, S, 3): prepared right, and squashed; `top1` of the float file on the right ones."""

    folder: Path
    network: nn.Module
    fp32: Path
    right: NDArray[np.uint8]
    squashed: NDArray[np.uint8]
    labels: NDArray[np.int64]
    calibration: NDArray[np.uint8]
    correct: NDArray[np.bool_]

    @property
    def top1(self) -> float:
        return float(self.correct.mean())


class _Network(nn.Module):
    """Convolution, depthwise convolutions, a residual sum, a mean: what compact networks are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _block(3, 16, 3, 2, 1)
        self.depthwise = _block(16, 16, 3, 1, 16)
        self.pointwise = _block(16, 32, 1, 1, 1)
        self.second = _block(32, 32, 3, 2, 32)
        self.mixed = _block(32, 32, 1, 1, 1)
        self.classifier = nn.Linear(32, len(CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.pointwise(self.depthwise(self.stem(x))))
        return self.classifier((x + self.mixed(x)).mean([2, 3]))


def _block(inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU6())


def prepare(folder: Path) -> Ground:
    """Draw the pictures, train the network, write its float file."""
    arrays = fashion.load()
    train, train_labels, _ = _draw(arrays["train_images"], arrays["train_labels"], TRAIN, 1)
    right, labels, squashed = _draw(arrays["test_images"], arrays["test_labels"], TEST, 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _with_dead_outlier(_train(train, train_labels))
    path = folder / "student.fp32.onnx"
    to_onnx(network, path, contract(RIGHT))
    correct = Model.load(path).run(right).argmax(axis=1) == labels
    return Ground(folder, network, path, right, squashed, labels, train[:64], correct)


def _draw(
    items: NDArray[np.uint8], kinds: NDArray[np.int64], count: int, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint8]]:
    """(prepared right, labels, squashed): clothes in a colour on a grey ground, WIDE x SIZE, as an application would decode them."""
    random = np.random.default_rng(seed)
    chosen = np.flatnonzero(np.isin(kinds, KINDS))[:count]
    colour = random.integers(0, len(COLOURS), len(chosen))
    tint = np.array(list(COLOURS.values()))[colour]
    scene = np.full((len(chosen), SIZE, WIDE, 3), GROUND, np.float64)
    top, left = (SIZE - fashion.SIDE) // 2, (WIDE - fashion.SIDE) // 2
    clothes = items[chosen][..., None] * tint[:, None, None, :]
    inside = scene[:, top : top + fashion.SIDE, left : left + fashion.SIDE]
    np.maximum(inside, clothes, out=inside)
    files = [_png(picture) for picture in (scene + random.normal(0, 6, scene.shape)).clip(0, 255).astype(np.uint8)]
    right = np.stack([decode_image(file, SIZE) for file in files])
    squashed = np.stack(
        [np.asarray(Image.open(io.BytesIO(file)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)) for file in files]
    )
    return right, np.array([KINDS.index(kind) for kind in kinds[chosen]]) * len(COLOURS) + colour, squashed


def _png(picture: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="PNG", compress_level=1)
    return stream.getvalue()


def _train(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> _Network:
    network = _Network()
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=EPOCHS * -(-len(images) // 50))
    x, y = to_float(torch.from_numpy(images), *RIGHT).contiguous(), torch.from_numpy(labels)
    for _ in range(EPOCHS):
        for part in torch.randperm(len(x)).split(50):
            loss = nn.functional.cross_entropy(network(x[part]), y[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    return network


def _with_dead_outlier(network: _Network) -> _Network:
    """One depthwise channel of each layer becomes dead with large weights, as happens in compact networks: float answers do not need it,
    one weight scale for all channels must hold it."""
    with torch.no_grad():
        for block in (network.depthwise, network.second):
            convolution, norm = block[0], block[1]
            assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
            assert norm.running_mean is not None and norm.running_var is not None
            least = int(norm.weight.abs().argmin())
            convolution.weight[least] *= (
                OUTLIER * convolution.weight.abs().max() / convolution.weight[least].abs().max()
            )
            norm.weight[least], norm.running_var[least], norm.running_mean[least] = 1.0, 1.0, 0.0
            norm.bias[least] = -1e6  # below zero for every picture
    return network


def contract(normalization: Constants) -> Contract:
    mean, std = (tuple(float(value) for value in values) for values in normalization)
    return Contract(CLASSES, SIZE, mean, std, "uint8_nhwc", "compress doctor")  # type: ignore[arg-type]
