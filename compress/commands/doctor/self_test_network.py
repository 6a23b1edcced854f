"""A small network for the self-test, trained in seconds on eight classes.

The classes are four kinds of clothes from the embedded images, each in red or in green. The images are wider than high,
so that channel order, range, crop and class order all matter.
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
from export.runtime import images as image_files

KINDS = (1, 3, 7, 8)  # trouser, dress, sneaker, bag
# Tints of red, green and blue. Neither becomes the other when red and blue are exchanged, because that would look like
# another order of the classes.
COLOURS = {"red": (1.0, 0.45, 0.2), "green": (0.45, 1.0, 0.2)}
CLASSES = tuple(f"{colour} {fashion.CLASSES[kind].lower()}" for kind in KINDS for colour in COLOURS)
HEIGHT, WIDTH = 32, 56  # pixels
BACKGROUND = 40  # grey level behind the clothes
NORMALIZATION: Constants = ((0.5,) * 3, (0.5,) * 3)
TRAIN_IMAGES, TEST_IMAGES, EPOCHS = 1600, 480, 8
# How many times larger the outlier is than the other weights: of the 127 steps up to it, none is left for them.
OUTLIER = 512.0


@dataclass(frozen=True)
class SelfTestFixture:
    """The network, images and answers that faults are planted into.

    `images` are uint8 (N, S, S, 3), cropped as the network learnt it; `squashed` are the same ones resized without a
    crop. `correct`, bool (N,), marks the images that the float file gets right.
    """

    folder: Path
    network: nn.Module
    fp32: Path
    images: NDArray[np.uint8]
    squashed: NDArray[np.uint8]
    labels: NDArray[np.int64]
    calibration: NDArray[np.uint8]
    correct: NDArray[np.bool_]

    @property
    def top1(self) -> float:
        """Return the float file's accuracy, a fraction."""
        return float(self.correct.mean())


class _Network(nn.Module):
    """A network of the layers of compact ones: convolution, depthwise convolutions, a residual sum, a mean."""

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
        logits: torch.Tensor = self.classifier((x + self.mixed(x)).mean([2, 3]))
        return logits


def _block(inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU6())


def build_fixture(folder: Path) -> SelfTestFixture:
    """Draw the images, train the network and write its float file into `folder`."""
    arrays = fashion.load()
    train, train_labels, _ = _draw(arrays["train_images"], arrays["train_labels"], TRAIN_IMAGES, 1)
    images, labels, squashed = _draw(arrays["test_images"], arrays["test_labels"], TEST_IMAGES, 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _with_dead_outlier(_train(train, train_labels))
    path = folder / "student.fp32.onnx"
    to_onnx(network, path, contract(NORMALIZATION))
    correct = Model.load(path).run(images).argmax(axis=1) == labels
    return SelfTestFixture(folder, network, path, images, squashed, labels, train[:64], correct)


def _draw(
    items: NDArray[np.uint8], kinds: NDArray[np.int64], count: int, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint8]]:
    """Draw coloured clothes on a grey background, and decode the files as an application would.

    Returns the cropped images uint8 (N, S, S, 3), the labels (N,) and the squashed images.
    """
    random = np.random.default_rng(seed)
    chosen = np.flatnonzero(np.isin(kinds, KINDS))[:count]
    colour = random.integers(0, len(COLOURS), len(chosen))
    tint = np.array(list(COLOURS.values()))[colour]
    scene = np.full((len(chosen), HEIGHT, WIDTH, 3), BACKGROUND, np.float64)
    top, left = (HEIGHT - fashion.SIDE) // 2, (WIDTH - fashion.SIDE) // 2
    clothes = items[chosen][..., None] * tint[:, None, None, :]
    inside = scene[:, top : top + fashion.SIDE, left : left + fashion.SIDE]
    np.maximum(inside, clothes, out=inside)
    files = [_png(image) for image in (scene + random.normal(0, 6, scene.shape)).clip(0, 255).astype(np.uint8)]
    cropped = np.stack([decode_image(file, HEIGHT) for file in files])
    squashed = np.stack([_squashed(file) for file in files])
    return cropped, np.array([KINDS.index(kind) for kind in kinds[chosen]]) * len(COLOURS) + colour, squashed


def _squashed(file: bytes) -> NDArray[np.uint8]:
    with image_files.open_image(file) as image:
        return np.asarray(image.resize((HEIGHT, HEIGHT), Image.Resampling.BILINEAR))


def _png(image: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="PNG", compress_level=1)
    return stream.getvalue()


def _train(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> _Network:
    network = _Network()
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=EPOCHS * -(-len(images) // 50))
    x, y = to_float(torch.from_numpy(images), *NORMALIZATION).contiguous(), torch.from_numpy(labels)
    for _ in range(EPOCHS):
        for part in torch.split(torch.randperm(len(x)), 50):
            loss = nn.functional.cross_entropy(network(x[part]), y[part])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    network.eval()
    return network


def _with_dead_outlier(network: _Network) -> _Network:
    """Give one dead channel of each depthwise layer large weights, as happens in compact networks.

    The float answers do not depend on the channel, but one weight scale for all channels must cover it.
    """
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
            norm.bias[least] = -1e6  # below zero for every image
    return network


def contract(normalization: Constants) -> Contract:
    """Return the contract of the network's files with another normalisation."""
    mean, std = (tuple(float(value) for value in values) for values in normalization)
    return Contract(CLASSES, HEIGHT, mean, std, "uint8_nhwc", "compress doctor")  # type: ignore[arg-type]
